#include "clients/cli/demo_script.h"
