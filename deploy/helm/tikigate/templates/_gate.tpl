{{/* The gate's container, but for what makes it a sidecar. */}}
{{- define "tikigate.container" -}}
{{- $facts := include "tikigate.facts" . | fromJson -}}
name: tikigate
image: {{ include "tikigate.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
{{- if or .Values.firstStart .Values.database.existingSecret }}
env:
  {{- if .Values.database.existingSecret }}
  - name: DATABASE_URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.database.existingSecret }}
        key: {{ .Values.database.key }}
  {{- end }}
  {{- if .Values.firstStart }}
  - name: TIKIGATE__LEDGER__REQUIRE_EXISTING
    value: "false"
  {{- end }}
{{- end }}
ports:
  - name: http
    containerPort: 8080
  - name: admin
    containerPort: 9901
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
lifecycle:
  preStop:
    exec:
      # Begins the drain and returns: the gate ends by itself.
      command:
        - /usr/local/bin/tikigate
        - drain
        - --no-wait
        - --token-file
        - /etc/tikigate/secrets/{{ .Values.adminTokenFile }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  privileged: false
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  # Whole directories: with subPath, Kubernetes never updates a file, and the gate reloads nothing.
  - name: tikigate-config
    mountPath: /etc/tikigate
    readOnly: true
  - name: tikigate-secrets
    mountPath: /etc/tikigate/secrets
    readOnly: true
  {{- if eq $facts.store "sqlite" }}
  - name: tikigate-ledger
    mountPath: /var/lib/tikigate
  - name: tikigate-mark
    mountPath: /var/lib/tikigate-mark
  {{- end }}
{{- end }}

{{- define "tikigate.volumes" -}}
{{- $facts := include "tikigate.facts" . | fromJson -}}
- name: tikigate-config
  configMap:
    name: {{ include "tikigate.fullname" . }}
- name: tikigate-secrets
  secret:
    secretName: {{ .Values.existingSecret }}
    # Readable for the owner and the group, which is fsGroup.
    defaultMode: 0440
{{- if eq $facts.store "sqlite" }}
- name: tikigate-ledger
  persistentVolumeClaim:
    claimName: {{ include "tikigate.fullname" . }}-ledger
- name: tikigate-mark
  persistentVolumeClaim:
    claimName: {{ include "tikigate.fullname" . }}-mark
{{- end }}
{{- end }}

{{/* The volumes and the secrets' files get this group, so that the gate may use them. */}}
{{- define "tikigate.podSecurityContext" -}}
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
{{- end }}

{{/* One gate on a file is ended before the next one starts; gates on a database are replaced one by one. */}}
{{- define "tikigate.deployment" -}}
{{- $facts := include "tikigate.facts" . | fromJson -}}
replicas: {{ .Values.replicaCount }}
strategy:
  {{- if eq $facts.store "postgres" }}
  type: RollingUpdate
  rollingUpdate:
    maxUnavailable: 0
    maxSurge: 1
  {{- else }}
  type: Recreate
  {{- end }}
{{- end }}
