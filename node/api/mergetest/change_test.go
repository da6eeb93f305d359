package mergetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// alternatives are values that a field of the name may well get, so that
// changes are of the kind that validation ties to others.
func alternatives() map[string][]string {
	return map[string][]string{
		"livenessProbe":         {`{"exec":{"command":["x"]},"timeoutSeconds":1,"periodSeconds":1,"successThreshold":1,"failureThreshold":1}`, `{"httpGet":{"path":"/","port":81,"scheme":"HTTP"},"timeoutSeconds":2,"periodSeconds":1,"successThreshold":1,"failureThreshold":1}`},
		"strategy":              {`{"type":"Recreate"}`, `{"type":"RollingUpdate","rollingUpdate":{"maxSurge":0,"maxUnavailable":1}}`, `{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}`},
		"updateStrategy":        {`{"type":"OnDelete"}`},
		"resources":             {`{"limits":{"cpu":"1"},"requests":{"cpu":"900m"}}`, `{"limits":{"cpu":"200m"},"requests":{"cpu":"100m"}}`, `{}`},
		"volumes":               {`+{"name":"extra","emptyDir":{}}`, `+{"name":"extra","hostPath":{"path":"/x","type":""}}`, `+{"name":"more","secret":{"secretName":"s","defaultMode":420}}`},
		"volumeMounts":          {`+{"name":"extra","mountPath":"/extra"}`, `+{"name":"config","mountPath":"/c2"}`, `+{"name":"more","mountPath":"/m"}`, `[]`},
		"containers":            {`+{"name":"extra","image":"i","imagePullPolicy":"Always","terminationMessagePath":"/t","terminationMessagePolicy":"File"}`, `+{"name":"late","image":"i","imagePullPolicy":"Always","terminationMessagePath":"/t","terminationMessagePolicy":"File","volumeMounts":[{"name":"data","mountPath":"/d"}]}`},
		"initContainers":        {`+{"name":"extra","image":"i","imagePullPolicy":"Always","terminationMessagePath":"/t","terminationMessagePolicy":"File"}`, `+{"name":"side","image":"i","restartPolicy":"Always","imagePullPolicy":"Always","terminationMessagePath":"/t","terminationMessagePolicy":"File"}`},
		"env":                   {`+{"name":"MORE","value":"1"}`, `+{"name":"MORE","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}`, `+{"name":"MODE","value":"again"}`},
		"ports":                 {`+{"name":"more","containerPort":81,"protocol":"TCP"}`, `+{"name":"more","containerPort":82,"protocol":"TCP"}`, `+{"name":"more","port":81,"protocol":"TCP","targetPort":81}`, `+{"name":"more","port":82,"protocol":"TCP","targetPort":81}`},
		"dnsPolicy":             {`"None"`, `"Default"`},
		"dnsConfig":             {`{"nameservers":["1.1.1.1"]}`},
		"hostNetwork":           {`true`},
		"restartPolicy":         {`"OnFailure"`, `"Never"`},
		"securityContext":       {`{"runAsUser":7}`, `{}`},
		"affinity":              {`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]}}}`},
		"selector":              {`{"matchLabels":{"tier":"front"}}`, `{"app":"other"}`},
		"labels":                {`{"app":"web","tier":"back"}`, `{"app":"web","tier":"front","more":"1"}`, `{"tier":"front","app":"shop"}`},
		"minReplicas":           {`1`, `4`, `5`},
		"maxReplicas":           {`2`, `3`, `9`},
		"minAvailable":          {`2`},
		"maxUnavailable":        {`1`},
		"minReadySeconds":       {`30`, `599`},
		"defaultBackend":        {`{"resource":{"kind":"K","name":"n"}}`, `{"service":{"name":"o","port":{"name":"p"}}}`},
		"rules":                 {`[{"host":"b.example.com","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"service":{"name":"w","port":{"number":1}}}}]}}]`, `+{"verbs":["watch"],"apiGroups":[""],"resources":["nodes"]}`},
		"externalName":          {`"x.example.com"`},
		"type":                  {`"NodePort"`, `"LoadBalancer"`, `"ExternalName"`},
		"sessionAffinity":       {`"ClientIP"`},
		"sessionAffinityConfig": {`{"clientIP":{"timeoutSeconds":100}}`},
		"externalTrafficPolicy": {`"Local"`, `"Cluster"`},
		"finalizers":            {`+"example.com/more"`, `+"example.com/other"`},
		"conditions":            {`+{"type":"Approved","status":"True","reason":"r"}`, `+{"type":"Denied","status":"True","reason":"r"}`, `+{"type":"Extra","status":"True","reason":"r","lastTransitionTime":"2026-07-01T12:00:00Z"}`},
		"data":                  {`{"a":"x"}`, `{"tls.crt":"eA==","tls.key":"eQ=="}`},
		"binaryData":            {`{"logo":"AA=="}`, `{"port":"AA=="}`, `{"new":"AA=="}`},
		"status":                {`{}`, `{"replicas":2,"readyReplicas":1,"availableReplicas":1,"updatedReplicas":2,"currentReplicas":2,"observedGeneration":1}`, `{"replicas":9,"readyReplicas":9,"availableReplicas":9,"updatedReplicas":9,"currentReplicas":9,"fullyLabeledReplicas":9,"observedGeneration":2}`},
		"claimRef":              {`{"kind":"PersistentVolumeClaim","namespace":"default","name":"other","uid":"u2","apiVersion":"v1"}`},
		"annotations":           {`{"note":"two"}`},
		"policyTypes":           {`["Ingress","Egress"]`},
		"egress":                {`[{}]`},
		"versions":              {`+{"name":"v2","served":true,"storage":false,"schema":{"openAPIV3Schema":{"type":"object"}}}`},
		"immutable":             {`true`},
		"counters":              {`+{"name":"c","zone":1}`, `+{"name":"c","zone":2,"open":true}`, `+{"name":"a","zone":2}`},
		"days":                  {`+"sat"`, `+"sun"`, `["mon"]`},
		"tags":                  {`+"z"`, `[]`},
		"limits":                {`{"min":2,"max":3}`},
		"addresses":             {`["10.42.0.9"]`},
	}
}

// change returns the object with something about it changed, and what.
func change(t testing.TB, rng *rand.Rand, value []byte) (out []byte, what string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	var obj map[string]any
	if err := d.Decode(&obj); err != nil {
		t.Fatal(err)
	}
	c := changer{rng: rng, alternatives: alternatives()}
	what = c.object(obj, "", 0)
	out, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	return out, what
}

type changer struct {
	rng          *rand.Rand
	alternatives map[string][]string
}

// object changes something in an object: a member, or one that it might have.
func (c *changer) object(obj map[string]any, at string, depth int) string {
	names := slices.Sorted(maps.Keys(obj))
	if c.rng.IntN(4) == 0 {
		// A member that might be there. Validation takes out what makes no sense.
		all := slices.Sorted(maps.Keys(c.alternatives))
		name := all[c.rng.IntN(len(all))]
		if depth > 0 {
			if _, ok := obj[name]; !ok {
				obj[name] = c.alternative(name, nil)
				return fmt.Sprintf("%s.%s comes: %v", at, name, obj[name])
			}
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	name := names[c.rng.IntN(len(names))]
	here := at + "." + name
	if depth == 0 && (name == "kind" || name == "apiVersion") || name == "uid" || name == "managedFields" {
		return "nothing"
	}
	if len(c.alternatives[name]) > 0 && c.rng.IntN(2) == 0 {
		obj[name] = c.alternative(name, obj[name])
		return fmt.Sprintf("%s is %v", here, obj[name])
	}
	if depth > 0 && c.rng.IntN(6) == 0 {
		delete(obj, name)
		return here + " goes"
	}
	var what string
	obj[name], what = c.value(obj[name], here, depth+1)
	return what
}

// alternative returns one of the values of the name; one with a plus comes on
// to the list that is there.
func (c *changer) alternative(name string, held any) any {
	all := c.alternatives[name]
	text := all[c.rng.IntN(len(all))]
	var v any
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	if text[0] == '+' {
		d = json.NewDecoder(bytes.NewReader([]byte(text[1:])))
	}
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		panic(name + ": " + err.Error())
	}
	if text[0] != '+' {
		return v
	}
	list, _ := held.([]any)
	return append(slices.Clone(list), v)
}

// value returns a value with something about it changed.
func (c *changer) value(v any, at string, depth int) (any, string) {
	switch v := v.(type) {
	case map[string]any:
		return v, c.object(v, at, depth)
	case []any:
		if len(v) == 0 {
			return v, "nothing"
		}
		i := c.rng.IntN(len(v))
		switch c.rng.IntN(6) {
		case 0:
			return slices.Delete(slices.Clone(v), i, i+1), fmt.Sprintf("%s[%d] goes", at, i)
		case 1:
			out := slices.Clone(v)
			c.rng.Shuffle(len(out), func(a, b int) { out[a], out[b] = out[b], out[a] })
			return out, at + " in another order"
		}
		var what string
		v[i], what = c.value(v[i], fmt.Sprintf("%s[%d]", at, i), depth+1)
		return v, what
	case json.Number:
		n := json.Number(fmt.Sprint(c.rng.IntN(12)))
		return n, at + " is " + n.String()
	case bool:
		return !v, at + " turns"
	case string:
		s := v + string("xyz"[c.rng.IntN(3)])
		return s, at + " is " + s
	}
	return v, "nothing"
}
