{{/* Contradictions that a schema cannot see. Each message says what to change. */}}
{{- define "loopserve.validate" -}}
{{- if gt (int .Values.router.replicas) 1 }}
  {{- fail "router.replicas: more than one router needs a session directory that they share; this version embeds it in the router, so set 1" }}
{{- end }}
{{- if not .Values.workers }}
  {{- fail "workers: the list is empty; a router without workers refuses every turn" }}
{{- end }}
{{- $names := list }}
{{- range (include "loopserve.groups" . | fromYaml).groups }}
  {{- $at := printf "workers[%s]" .name }}
  {{- if has .name $names }}{{ fail (printf "%s: two groups have this name" $at) }}{{ end }}
  {{- $names = append $names .name }}
  {{- if regexMatch "-[0-9]+-ranks$" .name }}
    {{- fail (printf "%s: names that end like this are those of sets of ranks (podsPerWorker); choose another" $at) }}
  {{- end }}
  {{- $sources := compact (list .model.existingClaim .model.hostPath .model.image.reference) }}
  {{- if ne (len $sources) 1 }}
    {{- fail (printf "%s.model: exactly one of existingClaim, hostPath and image.reference has to be set, not %d (%s)" $at (len $sources) (join ", " $sources)) }}
  {{- end }}
  {{- if ne (mod (int .tp) (int .podsPerWorker)) 0 }}
    {{- fail (printf "%s: tp %d cannot be shared equally by podsPerWorker %d" $at (int .tp) (int .podsPerWorker)) }}
  {{- end }}
  {{- if and (eq .kv.disk.type "hostPath") (not .kv.disk.hostPath) }}
    {{- fail (printf "%s.kv.disk: type hostPath needs hostPath, a folder on the nodes" $at) }}
  {{- end }}
  {{- if and (ne .kv.disk.type "hostPath") .kv.disk.hostPath }}
    {{- fail (printf "%s.kv.disk: hostPath is set, but type is %s" $at .kv.disk.type) }}
  {{- end }}
  {{- include "loopserve.validateMemory" (dict "at" $at "limit" (dig "limits" "memory" "" .resources) "parts" (list .kv.deviceBytes .kv.hostBytes)) }}
  {{- $longest := printf "%s-worker-%s" (include "loopserve.fullname" $) .name }}
  {{- if gt (int .podsPerWorker) 1 }}
    {{- $longest = printf "%s-%d-ranks" $longest (sub (int .replicas) 1) }}
  {{- end }}
  {{- if gt (len $longest) 52 }}
    {{- fail (printf "%s: the StatefulSet's name %s is longer than 52 characters; shorten the group's name, or set fullnameOverride" $at $longest) }}
  {{- end }}
{{- end }}
{{- if .Values.kvstore.enabled }}
  {{- include "loopserve.validateMemory" (dict "at" "kvstore" "limit" (dig "limits" "memory" "" .Values.kvstore.resources) "parts" (list .Values.kvstore.hostBytes)) }}
{{- end }}
{{- end }}

{{- define "loopserve.validateMemory" -}}
{{- if regexMatch "^[0-9]+[KMGT]i$" (toString .limit) }}
  {{- $sum := 0 }}
  {{- range .parts }}{{ $sum = add $sum (include "loopserve.bytes" . | int64) }}{{ end }}
  {{- if ge $sum (include "loopserve.bytes" .limit | int64) }}
    {{- fail (printf "%s: %s of KV do not fit into resources.limits.memory %s, where the model and the program have to live too" .at (join " + " .parts) .limit) }}
  {{- end }}
{{- end }}
{{- end }}
