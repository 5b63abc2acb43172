{{- define "loopserve.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 30 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 30 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{/* Labels that select pods. Argument: dict root, component (none: any), for workers and their ranks group, and for ranks worker. */}}
{{- define "loopserve.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .group }}
loopserve/group: {{ . }}
{{- end }}
{{- with .worker }}
loopserve/worker: {{ . }}
{{- end }}
{{- end }}

{{/* All labels of an object. Same argument. */}}
{{- define "loopserve.labels" -}}
{{ include "loopserve.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: loopserve
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of a pod: nothing that changes with the chart's version, which would restart every worker. */}}
{{- define "loopserve.podLabels" -}}
{{ include "loopserve.selector" . }}
app.kubernetes.io/part-of: loopserve
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .part.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Image reference. Argument: dict root, image. A digest wins over a tag. */}}
{{- define "loopserve.image" -}}
{{- $repository := .image.repository }}
{{- with .root.Values.image.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end }}
{{- if .image.digest }}{{ printf "%s@%s" $repository .image.digest }}
{{- else }}
{{- $tag := .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- if eq $tag "latest" }}{{ fail (printf "image %s: the tag \"latest\" is refused, it names another program tomorrow; give a version or a digest" $repository) }}{{ end }}
{{- printf "%s:%s" $repository $tag }}
{{- end }}
{{- end }}

{{/* A Kubernetes quantity (Ki, Mi, Gi, Ti, or plain) as a number of bytes. */}}
{{- define "loopserve.bytes" -}}
{{- $text := toString . }}
{{- $number := regexFind "^[0-9]+" $text | int64 }}
{{- $unit := regexFind "[KMGT]i$" $text }}
{{- mul $number (get (dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) $unit) }}
{{- end }}

{{/* 90 % of a volume's size: what a tier may fill. */}}
{{- define "loopserve.tierBytes" -}}
{{- div (mul (include "loopserve.bytes" . | int64) 9) 10 }}
{{- end }}

{{/* The worker groups, each completed from workerDefaults, as YAML under `groups`. */}}
{{- define "loopserve.groups" -}}
groups:
{{- range .Values.workers }}
- {{ mergeOverwrite (deepCopy $.Values.workerDefaults) . | toYaml | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "loopserve.kvstoreAddress" -}}
{{ include "loopserve.fullname" . }}-kvstore.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:8201
{{- end }}

{{/* What all pods share above their containers. Argument: dict root, part (the component's values). */}}
{{- define "loopserve.podSettings" -}}
automountServiceAccountToken: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The model's file, where a pod has it. Argument: dict root, part (a worker group). */}}
{{- define "loopserve.modelInit" -}}
{{- if .part.model.image.reference }}
initContainers:
  - name: model
    image: {{ .part.model.image.reference }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [cp, {{ printf "%s/%s" (trimSuffix "/" .part.model.image.path) .part.model.file }}, /models/]
    resources: {{- toYaml .part.resources | nindent 6 }}
    securityContext: {{- include "loopserve.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: /models}
{{- end }}
{{- end }}

{{- define "loopserve.modelVolume" -}}
- name: models
  {{- if .part.model.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .part.model.existingClaim }}, readOnly: true}
  {{- else if .part.model.hostPath }}
  hostPath: {path: {{ .part.model.hostPath }}, type: Directory}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}

{{- define "loopserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Settings that every executable takes. Argument: dict root, part. */}}
{{- define "loopserve.commonConfig" -}}
log-format: {{ .root.Values.log.format }}
log-level: {{ .root.Values.log.level }}
drain-settle: {{ .part.drain.settleSeconds }}s
drain-timeout: {{ .part.drain.timeoutSeconds }}s
{{- end }}
