{{/* An object of deploy/ as this release has it: its labels, and its namespace if it is in one. */}}
{{- define "guardrail.object" -}}
{{- $object := .object -}}
{{- $metadata := $object.metadata -}}
{{- with merge (default dict $metadata.labels) (default dict .labels) -}}
{{- $_ := set $metadata "labels" . -}}
{{- end -}}
{{- if not (has $object.kind (list "ClusterRole" "ClusterRoleBinding" "PriorityClass")) -}}
{{- $_ := set $metadata "namespace" .root.Release.Namespace -}}
{{- end -}}
{{- range $object.subjects -}}
{{- $_ := set . "namespace" $.root.Release.Namespace -}}
{{- end -}}
{{ toYaml $object }}
{{- end -}}

{{/* Every object of a file of deploy/. */}}
{{- define "guardrail.file" -}}
{{- range splitList "\n---\n" (required (printf "%s is missing from the chart" .file) (.root.Files.Get .file)) }}
---
{{ include "guardrail.object" (dict "root" $.root "object" (fromYaml .) "labels" $.labels) }}
{{- end }}
{{- end -}}

{{/* What the kustomization of deploy/base adds to each of its objects. */}}
{{- define "guardrail.labels" -}}
app.kubernetes.io/part-of: guardrail
{{- end -}}

{{- define "guardrail.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}
