package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestServicesAndNames(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(deployment)
	s.apply(pod)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
	s.rollout("deployment/web")
	s.wait("condition=Ready", "pod/web")
	get := func(url, want string) {
		t.Helper()
		s.eventually(url+" from a pod", func() error {
			out, err := s.try("", "exec", "web", "-c", "web", "--", "/web", "get", url)
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("answers %q", out)
			}
			return err
		})
	}
	// Not http://web/: in its pod a name is the pod's own first.
	get("http://outside/", " from web")
	get("http://web."+s.name+".svc.cluster.local/", " from web")
	get("http://"+s.field("service/web", ".spec.clusterIP")+"/", " from web")
	s.answers("http://10.77.0.11:"+s.field("service/outside", ".spec.ports[0].nodePort")+"/", " from web")
	// A pod reaches itself through its own Service, and all backends serve.
	seen := map[string]bool{}
	s.eventually("all three backends", func() error {
		out, err := s.try("", "exec", "web", "-c", "web", "--", "/web", "get", "http://outside/")
		if err == nil {
			seen[out] = true
		}
		if len(seen) < 3 {
			return fmt.Errorf("seen %v", seen)
		}
		return nil
	})
	// No such name: an answer, not a silence.
	if out, err := s.try("", "exec", "web", "-c", "web", "--", "/web", "get", "http://no-such-service."+s.name+".svc.cluster.local/"); err == nil || !strings.Contains(out, "no such host") {
		t.Errorf("a name that is not there: %v: %s", err, out)
	}
	// The API server, by the Service and the pod's own account.
	token := s.kubectl("exec", "web", "-c", "web", "--", "/web", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	out := shell(t, "curl -sS --cacert /var/lib/moot/pki/ca.crt -o /dev/null -w '%{http_code}' -H 'Authorization: Bearer "+token+"' https://10.43.0.1/api 2>&1 || true")
	if !strings.HasSuffix(out, "200") {
		t.Errorf("the API by its Service and a pod's account: %s", out)
	}
}

func TestAccessControl(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	for url, want := range map[string]string{
		"https://127.0.0.1:6443/api/v1/pods":    "401",
		"https://127.0.0.1:6443/api":            "401",
		"https://127.0.0.1:10250/pods":          "401",
		"https://127.0.0.1:10250/run/x/y/z?a=b": "401",
	} {
		equal(t, "nobody at "+url, shell(t, "curl -sk -o /dev/null -w '%{http_code}' '"+url+"'"), want)
	}
	equal(t, "the kubeconfig's mode", shell(t, "stat -c %a /var/lib/moot/kubeconfig"), "600")
	contains(t, "keys for root alone", shell(t, "find /var/lib/moot/pki -name '*.key' -perm /077 | wc -l"), "0")

	s.kubectl("create", "serviceaccount", "reader")
	as := "--as=system:serviceaccount:" + s.name + ":reader"
	can := func(verb, what string) string {
		out, _ := s.try("", "auth", "can-i", verb, what, as)
		return strings.TrimSpace(strings.Split(out, "\n")[0])
	}
	equal(t, "before it is allowed", can("list", "pods"), "no")
	s.kubectl("create", "role", "read-pods", "--verb=get,list", "--resource=pods")
	s.kubectl("create", "rolebinding", "reader", "--role=read-pods", "--serviceaccount="+s.name+":reader")
	s.eventually("allowed", func() error {
		if got := can("list", "pods"); got != "yes" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	equal(t, "to delete", can("delete", "pods"), "no")
	equal(t, "of secrets", can("list", "secrets"), "no")

	token := s.kubectl("create", "token", "reader")
	contains(t, "a token", s.kubectl("--token="+token, "--server=https://127.0.0.1:6443", "--kubeconfig=/dev/null",
		"--insecure-skip-tls-verify", "get", "pods", "-o", "name", "--ignore-not-found")+"ok", "ok")
}

func TestCustomResource(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.try.moot.example.com}
spec:
  group: try.moot.example.com
  names: {kind: Boat, plural: boats, singular: boat}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.masts, statusReplicasPath: .status.masts}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [masts]
            properties: {masts: {type: integer, minimum: 1, maximum: 5}, name: {type: string, default: nameless}}
            x-kubernetes-validations: [{rule: "self.name != 'Titanic'", message: "not that one"}]
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`)
	defer s.kubectl("delete", "crd", "boats.try.moot.example.com")
	s.wait("condition=Established", "crd/boats.try.moot.example.com")
	boat := "apiVersion: try.moot.example.com/v1\nkind: Boat\nmetadata: {name: b}\nspec: {masts: %d, name: %s}\n"
	s.eventually("a boat", func() error {
		_, err := s.try(fmt.Sprintf(boat, 3, "Fram"), "apply", "-f", "-")
		return err
	})
	equal(t, "the boat", s.field("boat/b", ".spec.name"), "Fram")
	for _, bad := range []string{fmt.Sprintf(boat, 9, "Fram"), fmt.Sprintf(boat, 3, "Titanic")} {
		if out, err := s.try(bad, "apply", "-f", "-"); err == nil {
			t.Errorf("a wrong boat is taken: %s", out)
		}
	}
	s.kubectl("scale", "boat/b", "--replicas=2")
	equal(t, "after scale", s.field("boat/b", ".spec.masts"), "2")
	s.must(s.fill("apiVersion: try.moot.example.com/v1\nkind: Boat\nmetadata: {name: b}\nspec: {masts: 4}\n"),
		"kubectl", "-n", s.name, "apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-")
	equal(t, "after a server-side apply", s.field("boat/b", ".spec.masts"), "4")
}

// certificates puts a TLS Secret for a Service in the test's namespace and
// returns the CA, encoded for a manifest.
func (s *space) certificates(service string) string {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	host := service + "." + s.name + ".svc"
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		s.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		var out bytes.Buffer
		if err := pem.Encode(&out, &pem.Block{Type: kind, Bytes: b}); err != nil {
			s.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(out.Bytes())
	}
	cert := encode("CERTIFICATE", der)
	s.apply(fmt.Sprintf("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s-tls}\ndata: {tls.crt: %s, tls.key: %s}\n",
		service, cert, encode("PRIVATE KEY", keyDER)))
	return cert
}

const tlsServer = `
apiVersion: v1
kind: Pod
metadata: {name: $SERVICE, labels: {app: $SERVICE}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: $IMAGE
    args: [$KIND]
    volumeMounts: [{name: certs, mountPath: /certs}]
    readinessProbe: {httpGet: {path: /readyz, port: 8443, scheme: HTTPS}, periodSeconds: 1}
  volumes: [{name: certs, secret: {secretName: $SERVICE-tls}}]
---
apiVersion: v1
kind: Service
metadata: {name: $SERVICE}
spec: {selector: {app: $SERVICE}, ports: [{port: 443, targetPort: 8443}]}
`

// serverPod runs the web app as a TLS server behind a Service.
func (s *space) serverPod(service, kind string) (ca string) {
	s.Helper()
	ca = s.certificates(service)
	s.apply(strings.NewReplacer("$SERVICE", service, "$KIND", kind).Replace(tlsServer))
	s.wait("condition=Ready", "pod/"+service)
	return ca
}

// The API server reaches a pod behind a Service, and heeds it.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	ca := s.serverPod("hook", "webhook")
	s.kubectl("label", "namespace", s.name, "hooked=yes")
	const config = `
apiVersion: admissionregistration.k8s.io/v1
kind: %sWebhookConfiguration
metadata: {name: $NS-%s}
webhooks:
- name: hook.moot.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  namespaceSelector: {matchLabels: {hooked: "yes"}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]
  clientConfig: {caBundle: %s, service: {name: hook, namespace: $NS, path: /%s}}
`
	s.apply(fmt.Sprintf(config, "Validating", "v", ca, "validate"))
	defer s.kubectl("delete", "validatingwebhookconfiguration", s.name+"-v")
	s.apply(fmt.Sprintf(config, "Mutating", "m", ca, "mutate"))
	defer s.kubectl("delete", "mutatingwebhookconfiguration", s.name+"-m")

	forbidden := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad, labels: {forbidden: \"true\"}}\n"
	s.eventually("a forbidden object is refused", func() error {
		out, err := s.try(forbidden, "create", "-f", "-")
		if err == nil {
			s.kubectl("delete", "configmap", "bad")
			return fmt.Errorf("it was taken")
		}
		if !strings.Contains(out, "the label says it is forbidden") {
			return fmt.Errorf("refused for another reason: %s", out)
		}
		return nil
	})
	s.eventually("a good object is taken and changed", func() error {
		if _, err := s.try("", "create", "configmap", "good", "--from-literal=a=b"); err != nil {
			return err
		}
		if got := s.field("configmap/good", ".metadata.annotations.seen"); got != "by-webhook" {
			s.kubectl("delete", "configmap", "good")
			return fmt.Errorf("annotation %q", got)
		}
		return nil
	})
	contains(t, "the webhook's log", s.kubectl("logs", "hook"), `review of "bad": false`, `review of "good": true`)
	// Without its pod nothing gets past a webhook that must not fail.
	s.kubectl("delete", "pod", "hook")
	if out, err := s.try("", "create", "configmap", "late"); err == nil {
		t.Errorf("taken without the webhook: %s", out)
	}
}

func TestAggregatedAPI(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	ca := s.serverPod("greeter", "api")
	s.apply(fmt.Sprintf(`
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.try.moot.example}
spec:
  group: try.moot.example
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: %s
  service: {name: greeter, namespace: $NS}
`, ca))
	defer s.kubectl("delete", "apiservice", "v1.try.moot.example")
	s.wait("condition=Available", "apiservice/v1.try.moot.example")
	s.eventually("a greeting", func() error {
		out, err := tryOn(t.Context(), "", "kubectl", "-n", "default", "get", "greetings.try.moot.example", "hello", "-o", "jsonpath={.text}")
		if err == nil && out != "hello from an aggregated API" {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}
