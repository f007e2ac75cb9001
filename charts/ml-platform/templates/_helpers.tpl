{{- define "platform.labels" -}}
app.kubernetes.io/name: ml-platform
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Namespaces of our own pods: nothing in, nothing out but what a policy names. */}}
{{- define "platform.workloads" -}}
[wmtp, mlflow, airflow, ray, database]
{{- end }}

{{/* Namespaces of upstream operators. A container that needs the host's devices or files cannot be restricted. */}}
{{- define "platform.operators" -}}
external-secrets: {level: restricted, ports: [10250], metrics: [8080]}
kueue-system: {level: restricted, ports: [9443, 8082], metrics: [8443]}
kuberay-system: {level: restricted, ports: [], metrics: [8080]}
monitoring: {level: privileged, ports: [10250], metrics: []}
gpu-system: {level: privileged, ports: [], metrics: [9400]}
{{- end }}

{{/* S3: its gateway endpoint gives it no address of the VPC. */}}
{{- define "platform.s3Egress" -}}
- to:
    {{- range .Values.network.s3Cidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports: [{port: 443}]
{{- end }}

{{/* S3; the API server, endpoints and internal load balancers, which are in the VPC; Pod Identity's agent, which is on the node. */}}
{{- define "platform.awsEgress" -}}
{{ include "platform.s3Egress" . }}
- to: [{ipBlock: {cidr: {{ .Values.network.vpcCidr }}}}]
  ports: [{port: 443}]
- to: [{ipBlock: {cidr: 169.254.170.23/32}}]
  ports: [{port: 80}]
{{- end }}

{{/* Networks outside, a list under .cidrs; the whole internet is without what is private. */}}
{{- define "platform.outside" -}}
{{- range .cidrs }}
- ipBlock:
    cidr: {{ . }}
    {{- if eq . "0.0.0.0/0" }}
    except: [10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16]
    {{- end }}
{{- end }}
{{- end }}

{{- define "platform.databaseEgress" -}}
- to:
    {{- range .Values.network.databaseCidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports: [{port: {{ .Values.database.port }}}]
{{- end }}

{{/* A service of libpq's file, filled in by external-secrets: host, names and password of a database. */}}
{{- define "platform.service" -}}
[{{ .service }}]
host={{ .root.Values.database.host }}
port={{ .root.Values.database.port }}
dbname={{ .dbname | default "postgres" }}
user={{ printf "{{ .%susername }}" .prefix }}
password={{ printf "{{ .%spassword }}" .prefix }}
sslmode=verify-full
sslrootcert={{ .ca }}
{{- end }}
