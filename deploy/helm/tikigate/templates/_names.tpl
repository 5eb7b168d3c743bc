{{- define "tikigate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* All that the chart makes is named by it, so there is room for `-ledger` and the like. */}}
{{- define "tikigate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "tikigate.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tikigate.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What finds the gate's pods: in front they are the chart's own, as a sidecar the backend's. */}}
{{- define "tikigate.selector" -}}
{{- if eq .Values.mode "sidecar" -}}
tikigate: sidecar
tikigate-release: {{ .Release.Name }}
{{- else -}}
app.kubernetes.io/name: {{ include "tikigate.name" . }}
app.kubernetes.io/component: gate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "tikigate.labels" -}}
app.kubernetes.io/name: {{ include "tikigate.name" . }}
app.kubernetes.io/component: gate
app.kubernetes.io/part-of: tikigate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tikigate.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}
