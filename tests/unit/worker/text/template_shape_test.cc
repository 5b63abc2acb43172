#include "worker/text/template_shape.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace loopserve::worker {
namespace {

std::string Canonical(const std::string& jinja) {
  const auto shape = CanonicalTemplate(jinja);
  EXPECT_TRUE(shape.ok()) << shape.status();
  return shape.value_or("");
}

TEST(CanonicalTemplate, OneSpellingForWhatRendersTheSame) {
  const std::string expected = "{%if a%}{{'x\\n'+m['role']+'y'}}{%endif%}";
  for (const char* jinja : {
           "{% if a %}{{ 'x\n' + m['role'] + 'y' }}{% endif %}",
           "{%if a%}{{'x\\n'+m.role+'y'}}{%endif%}",
           "{%- if a -%} {{- \"x\\n\" + m[\"role\"] + \"y\" -}} {%- endif -%}\n",
           "{%- if a %}\n    {{- 'x' + '\\n' + m.role + 'y' }}\n{%- endif %}\n",
           "{# a comment, {% not %} read #}{%if a%}{{'x\n'+m['role']+'y'}}{%endif%}",
       }) {
    EXPECT_EQ(Canonical(jinja), expected) << jinja;
  }
}

TEST(CanonicalTemplate, KeepsWhatDiffers) {
  EXPECT_EQ(Canonical("{{ 'a  b' }}"), "{{'a  b'}}");
  EXPECT_EQ(Canonical("{{ loop.first and not x }}"), "{{loop.first and not x}}");
  EXPECT_EQ(Canonical("{{ myloop.first }}"), "{{myloop['first']}}");
  EXPECT_EQ(Canonical("{{ a|trim + 'b' }}"), "{{a|trim+'b'}}");
  EXPECT_EQ(Canonical("{{ a['b'] is defined }}"), "{{a['b'] is defined}}");
  EXPECT_EQ(Canonical(R"({{ "it's" + '"' }})"), R"({{'it\'s"'}})");
}

TEST(CanonicalTemplate, TagsInStringsAreText) {
  EXPECT_EQ(Canonical("{{ '%} }} {{' }}"), "{{'%} }} {{'}}");
}

TEST(CanonicalTemplate, RefusesWhatIsNoListOfTags) {
  for (const char* jinja : {"text", "{{a}}text", "text{{a}}", "{{a}} {{b}}", "{{a}}\n{{b}}",
                            " {{a}}", "{{a", "{%", "{{'a}}", "{{ 'a\\", "{#", "{{a}", "{"}) {
    EXPECT_FALSE(CanonicalTemplate(jinja).ok()) << jinja;
  }
}

TEST(CanonicalTemplate, IsIdempotentOnItsOutput) {
  const std::string once = Canonical("{%- for m in ms %}\n{{- m.a + '\\n' }}\n{%- endfor %}");
  EXPECT_EQ(Canonical(once), once);
}

TEST(UnescapeTemplateString, ResolvesEscapes) {
  EXPECT_EQ(UnescapeTemplateString(R"(a\n\t\r\'\\\")"), "a\n\t\r'\\\"");
  EXPECT_EQ(UnescapeTemplateString("a\\"), "a\\");
}

}  // namespace
}  // namespace loopserve::worker
