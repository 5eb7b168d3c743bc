{{/* A duration of the configuration, such as 1m15s, in milliseconds. */}}
{{- define "tikigate.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 }}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 }}
{{- $unit := regexFind "[a-z]+" . }}
{{- $sum = add $sum (mul (trimSuffix $unit . | int64) (get $units $unit)) }}
{{- end }}
{{- $sum }}
{{- end }}

{{/*
What the chart has to know of the configuration, as JSON: `store`, `grace` (terminationGracePeriodSeconds)
and `preStop` (how long a sidecar's backend sleeps). Refuses what the gate can't see from inside, or what
would only be noticed when a refund has been sent twice. All the rest is the gate's own to check.
*/}}
{{- define "tikigate.facts" -}}
{{- $values := .Values }}
{{- if not (trim $values.config) }}
{{- fail "tikigate: `config` is empty: give the text of the configuration, --set-file config=tikigate.toml" }}
{{- end }}
{{- if not $values.existingSecret }}
{{- fail "tikigate: `existingSecret` is empty: name the Secret with the files that the configuration calls secrets/..." }}
{{- end }}
{{- $config := fromToml $values.config }}
{{- if and (hasKey $config "Error") (not (hasKey $config "routes")) }}
{{- fail (printf "tikigate: `config` is not TOML: %s" $config.Error) }}
{{- end }}

{{- if not (hasSuffix ":8080" (dig "server" "listen" "0.0.0.0:8080" $config)) }}
{{- fail "tikigate: server.listen must be \"0.0.0.0:8080\": the Service leads there" }}
{{- end }}
{{- if not (has (dig "admin" "listen" "" $config) (list "0.0.0.0:9901" "[::]:9901")) }}
{{- fail "tikigate: admin.listen must be \"0.0.0.0:9901\": the kubelet's probes come from outside of the pod" }}
{{- end }}
{{- $files := list }}
{{- range dig "admin" "tokens" list $config }}
{{- $files = append $files (get . "file") }}
{{- end }}
{{- $token := printf "secrets/%s" $values.adminTokenFile }}
{{- if not (or (has $token $files) (has (printf "/etc/tikigate/%s" $token) $files)) }}
{{- fail (printf "tikigate: admin.tokens has no token with file = %q: the preStop hook could not drain (adminTokenFile)" $token) }}
{{- end }}
{{- if not (or (dig "server" "workers" 0 $config) (dig "limits" "cpu" "" $values.resources)) }}
{{- fail "tikigate: without server.workers and without resources.limits.cpu the gate takes every core of its node, and memory for each: set server.workers = 2" }}
{{- end }}

{{- $store := dig "ledger" "store" "sqlite" $config }}
{{- if and (ne $store "postgres") (gt (int $values.replicaCount) 1) }}
{{- fail (printf "tikigate: replicaCount is %d, but a ledger in %q belongs to one gate: each would send the same refund. Use one replica, or ledger.store = \"postgres\"" (int $values.replicaCount) $store) }}
{{- end }}
{{- if eq $store "sqlite" }}
{{- if not (hasPrefix "/var/lib/tikigate/" (dig "ledger" "path" "" $config)) }}
{{- fail "tikigate: ledger.path must lie in /var/lib/tikigate/, where the volume is: a ledger in the container is lost with it" }}
{{- end }}
{{- if not (hasPrefix "/var/lib/tikigate-mark/" (dig "ledger" "watermark" "" $config)) }}
{{- fail "tikigate: ledger.watermark must lie in /var/lib/tikigate-mark/, where its volume is" }}
{{- end }}
{{- end }}
{{- if and (ne $store "memory") (not (dig "ledger" "require_existing" false $config)) }}
{{- fail "tikigate: set ledger.require_existing = true, so that a lost volume or database is noticed; the value firstStart=true overrides it for the very first start" }}
{{- end }}
{{- if and (eq $store "postgres") (eq (dig "ledger" "url" "env" "" $config) "DATABASE_URL") (not $values.database.existingSecret) }}
{{- fail "tikigate: ledger.url comes from DATABASE_URL, so name the Secret with the URL: database.existingSecret" }}
{{- end }}

{{- $delay := include "tikigate.milliseconds" (dig "server" "drain_delay" "2s" $config) | int64 }}
{{- $drain := add $delay (include "tikigate.milliseconds" (dig "server" "drain_within" "75s" $config)) }}
{{- $drain = div (add $drain 999) 1000 }}
{{- $preStop := 0 }}
{{- $least := add $drain 5 }}
{{- if eq $values.mode "sidecar" }}
{{- $preStop = $values.sidecar.backendPreStopSeconds | default (add $drain 5) }}
{{- if lt (int $preStop) (int (add $drain 5)) }}
{{- fail (printf "tikigate: sidecar.backendPreStopSeconds is %d, but the gate's drain takes up to %d s (server.drain_delay and drain_within, and 5 s): the backend would end in the middle of calls" (int $preStop) (int (add $drain 5))) }}
{{- end }}
{{- $least = add $preStop $values.sidecar.backendStopSeconds }}
{{- end }}
{{- /* In a sidecar's pod there is room for one more drain of nothing, should the kubelet start the gate anew. */}}
{{- $spare := ternary (add 10 (div (add $delay 999) 1000)) 10 (eq $values.mode "sidecar") }}
{{- $grace := $values.terminationGracePeriodSeconds | default (add $least $spare) }}
{{- if lt (int $grace) (int $least) }}
{{- fail (printf "tikigate: terminationGracePeriodSeconds is %d, but a drain may take %d s: calls would be killed. Leave it out, or lower server.drain_within" (int $grace) (int $least)) }}
{{- end }}
{{- dict "store" $store "grace" (int $grace) "preStop" (int $preStop) | toJson }}
{{- end }}
