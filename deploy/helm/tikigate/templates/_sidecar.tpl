{{/*
For the chart of a backend that has this one as a dependency, with `tikigate.mode: sidecar`. Each is
included with this chart's part of the release: include "tikigate.sidecar.container" .Subcharts.tikigate
deploy/helm/example shows all of them in their places.
*/}}

{{/* Under the Deployment's spec: `replicas` and `strategy`. */}}
{{- define "tikigate.sidecar.deployment" -}}
{{- include "tikigate.deployment" . }}
{{- end }}

{{/* Further labels of the pods, by which the network policy and the PodMonitor find them. */}}
{{- define "tikigate.sidecar.podLabels" -}}
{{- include "tikigate.selector" . }}
{{- end }}

{{/* An item of `initContainers`. It is started before the containers, and stays. */}}
{{- define "tikigate.sidecar.container" -}}
{{- if ne .Values.mode "sidecar" }}
{{- fail "tikigate: the backend's chart includes the sidecar, so set tikigate.mode to \"sidecar\"" }}
{{- end -}}
{{- include "tikigate.container" . }}
restartPolicy: Always
{{- end }}

{{/* Items of the pod's `volumes`. */}}
{{- define "tikigate.sidecar.volumes" -}}
{{- include "tikigate.volumes" . }}
{{- end }}

{{/* The pod's `securityContext`. */}}
{{- define "tikigate.sidecar.podSecurityContext" -}}
{{- include "tikigate.podSecurityContext" . }}
{{- end }}

{{/* The pod's `terminationGracePeriodSeconds`. */}}
{{- define "tikigate.sidecar.terminationGracePeriodSeconds" -}}
{{- (include "tikigate.facts" . | fromJson).grace }}
{{- end }}

{{/* The backend's `lifecycle`: it stays for as long as the gate may need it to end what runs. */}}
{{- define "tikigate.sidecar.backendLifecycle" -}}
preStop:
  sleep:
    seconds: {{ (include "tikigate.facts" . | fromJson).preStop }}
{{- end }}

{{/* The `targetPort` of the Service that Tiki's calls come to. */}}
{{- define "tikigate.sidecar.targetPort" -}}
8080
{{- end }}
