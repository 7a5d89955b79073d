{{- define "ebbtide.labels" -}}
app.kubernetes.io/name: ebbtide-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end }}
{{- /* An image, behind the registry of all of them. */ -}}
{{- define "ebbtide.image" -}}
{{- with .registry }}{{ . | trimSuffix "/" }}/{{ end }}{{ .image }}
{{- end }}
{{- /* Images by the keys of package lists. */ -}}
{{- define "ebbtide.environments" -}}
{{- $found := dict }}
{{- range $key, $image := .Values.environments }}
{{- $_ := set $found $key (include "ebbtide.image" (dict "registry" $.Values.registry "image" $image)) }}
{{- end }}
{{- $found | toJson }}
{{- end }}
{{- define "ebbtide.selector" -}}
app.kubernetes.io/name: ebbtide-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}
{{- /* What the operator may do with tenants' things. Their Secrets are written, and never read. */ -}}
{{- define "ebbtide.rules" -}}
- { apiGroups: [ebbtide.dev], resources: [clusters, clusterjobs], verbs: [get, list, watch, create, delete] }
- { apiGroups: [ebbtide.dev], resources: [clusters/status, clusterjobs/status], verbs: [update, patch] }
- { apiGroups: [ebbtide.dev], resources: [clusters/finalizers, clusterjobs/finalizers], verbs: [update] }
- { apiGroups: [""], resources: [pods], verbs: [get, list, watch, create, delete] }
- { apiGroups: [""], resources: [secrets], verbs: [create, update] }
- { apiGroups: [""], resources: [services], verbs: [get, list, watch, create, update] }
- { apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [get, list, watch, create, update, delete] }
- { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
{{- end }}
