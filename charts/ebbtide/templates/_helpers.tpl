{{- define "ebbtide.labels" -}}
app.kubernetes.io/name: ebbtide-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end }}
{{- define "ebbtide.selector" -}}
app.kubernetes.io/name: ebbtide-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
