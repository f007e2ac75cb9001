{{- define "mlflow.selector" -}}
app.kubernetes.io/name: mlflow
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mlflow.labels" -}}
{{ include "mlflow.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "mlflow.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mlflow.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "mlflow.databaseMounts" -}}
- {name: databases, mountPath: /etc/mlflow/databases, readOnly: true}
- {name: database-ca, mountPath: /etc/mlflow/database-ca, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "mlflow.databaseVolumes" -}}
- name: databases
  secret: {secretName: {{ .Values.databases.secretName }}, items: [{key: pg_service.conf, path: pg_service.conf}]}
- name: database-ca
  configMap: {name: {{ .Values.databases.caConfigMap }}, items: [{key: ca.pem, path: ca.pem}]}
{{- end }}

{{/* No URI holds a password: libpq reads host, user and password of a service from this file. */}}
{{- define "mlflow.databaseEnvironment" -}}
- {name: PGSERVICEFILE, value: /etc/mlflow/databases/pg_service.conf}
- {name: HOME, value: /tmp}
- {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
{{- end }}
