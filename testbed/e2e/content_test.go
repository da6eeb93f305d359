package e2e

import (
	"fmt"
	"testing"
)

// What a pod is given: variables, files, mounts, and the order its
// containers start in.
func TestPodContent(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	shell(t, "mkdir -p /srv/shared && echo from the host >/srv/shared/f")
	s.kubectl("create", "configmap", "conf", "--from-literal=color=blue", "--from-literal=file.txt=a file")
	s.kubectl("create", "secret", "generic", "keys", "--from-literal=token=s3cret")
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {tier: test}, annotations: {note: read me}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: $IMAGE, args: [write, /shared/order, "first"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: sidecar
    image: $IMAGE
    restartPolicy: Always
    args: [serve, --addr, ":9000"]
    startupProbe: {httpGet: {path: /healthz, port: 9000}, periodSeconds: 1}
  - {name: needs-sidecar, image: $IMAGE, args: [get, "http://127.0.0.1:9000/"]}
  containers:
  - name: web
    image: $IMAGE
    resources: {requests: {cpu: 20m, memory: 20Mi}, limits: {cpu: 200m, memory: 40Mi}}
    env:
    - {name: PLAIN, value: "plain $(COLOR)"}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}
    - {name: LATER, value: "later $(COLOR)"}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    envFrom: [{prefix: C_, configMapRef: {name: conf}}]
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: host, mountPath: /host}
    - {name: memory, mountPath: /memory}
    - {name: projected, mountPath: /projected, readOnly: true}
    - {name: conf, mountPath: /etc/one-file.txt, subPath: file.txt}
    - {name: downward, mountPath: /podinfo}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: /srv/shared, type: Directory}}
  - {name: conf, configMap: {name: conf}}
  - name: downward
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
  - name: projected
    projected:
      sources:
      - {configMap: {name: conf, items: [{key: color, path: color}]}}
      - {secret: {name: keys}}
      - {serviceAccountToken: {path: sa, audience: tests, expirationSeconds: 600}}
`)
	s.wait("condition=Ready", "pod/all")
	web := func(args ...string) string {
		t.Helper()
		return s.kubectl(append([]string{"exec", "all", "-c", "web", "--", "/web"}, args...)...)
	}
	contains(t, "variables", web("env"),
		"PLAIN=plain $(COLOR)\n", "COLOR=blue\n", "LATER=later blue\n", "TOKEN=s3cret\n", "NODE="+node+"\n",
		"LIMIT=41943040\n", "C_color=blue\n", "POD_IP=10.42.", "KUBERNETES_SERVICE_HOST=10.43.0.1\n")
	contains(t, "files", web("cat", "/shared/order", "/host/f", "/projected/color", "/projected/token",
		"/etc/one-file.txt", "/podinfo/labels", "/podinfo/note", "/etc/resolv.conf", "/etc/hosts"),
		"first", "from the host", "blue", "s3cret", "a file", `tier="test"`, "read me",
		"nameserver 10.43.0.10", s.name+".svc.cluster.local", "all")
	contains(t, "the projected token", web("cat", "/projected/sa"), "eyJ")
	web("write", "/host/back", "from the pod")
	equal(t, "the host's directory", shell(t, "cat /srv/shared/back"), "from the pod")
	if _, err := s.try("", "exec", "all", "-c", "web", "--", "/web", "touch", "/projected/x"); err == nil {
		t.Error("a read-only mount takes a file")
	}
	contains(t, "a memory volume", s.kubectl("exec", "all", "-c", "web", "--", "/web", "cat", "/proc/mounts"), "/memory tmpfs")

	// A changed ConfigMap arrives in the mounted files of a running pod.
	s.kubectl("patch", "configmap", "conf", "-p", `{"data":{"color":"green"}}`)
	s.eventually("the new color", func() error {
		if got := web("cat", "/projected/color"); got != "green" {
			return fmt.Errorf("color is %s", got)
		}
		return nil
	})
}

func TestProbes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: $IMAGE
    args: [serve, --start-after, 3s]
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 120}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
  - name: checked
    image: $IMAGE
    args: [serve, --addr, ":9000"]
    readinessProbe: {exec: {command: [/web, get, "http://127.0.0.1:9000/readyz"]}, periodSeconds: 1, timeoutSeconds: 10}
    livenessProbe: {tcpSocket: {port: 9000}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
	s.wait("condition=Ready", "pod/web")
	restarts := func() string { return s.field("pod/web", ".status.containerStatuses[?(@.name==\"web\")].restartCount") }
	equal(t, "restarts of a slow starter", restarts(), "0")
	ip, podIP := s.field("service/web", ".spec.clusterIP"), s.field("pod/web", ".status.podIP")
	s.answers("http://"+ip+"/", "hello from web")

	// Not ready: out of the Service, but not restarted.
	if _, err := curl(t.Context(), "http://"+podIP+":8080/unready"); err != nil {
		t.Fatal(err)
	}
	s.eventually("out of the Service", func() error {
		if out, err := curl(t.Context(), "http://"+ip+"/"); err == nil {
			return fmt.Errorf("it still answers: %s", out)
		}
		return nil
	})
	equal(t, "restarts of an unready one", restarts(), "0")
	if _, err := curl(t.Context(), "http://"+podIP+":8080/ready"); err != nil {
		t.Fatal(err)
	}
	s.answers("http://"+ip+"/", "hello from web")

	// Not alive: restarted, and back.
	if _, err := curl(t.Context(), "http://"+podIP+":8080/break"); err != nil {
		t.Fatal(err)
	}
	s.eventually("a restart", func() error {
		if n := restarts(); n == "0" {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	s.wait("condition=Ready", "pod/web")
	s.answers("http://"+ip+"/", "hello from web")
}

// Requests and limits reach the kernel, in the hierarchy that this machine
// has, below the node's own root.
func TestResources(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: guaranteed}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $IMAGE, resources: {limits: {cpu: 100m, memory: 64Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: burstable}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $IMAGE, resources: {requests: {memory: 16Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: besteffort}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: too-much}
spec:
  containers: [{name: web, image: $IMAGE, resources: {requests: {memory: 4Ti}}}]
`)
	s.wait("condition=Ready", "pod/guaranteed", "pod/burstable", "pod/besteffort")
	for pod, class := range map[string]string{"guaranteed": "Guaranteed", "burstable": "Burstable", "besteffort": "BestEffort"} {
		equal(t, "class of "+pod, s.field("pod/"+pod, ".status.qosClass"), class)
	}
	// The pod's cgroup holds the container's: v1 and v2 name the file apart.
	uid := s.field("pod/guaranteed", ".metadata.uid")
	find := `d=$(find /sys/fs/cgroup -type d -path '*kubepods*%s*' -not -path '*/pod%s/*' 2>/dev/null); for i in $d; do cat $i/%s $i/%s 2>/dev/null; done; true`
	equal(t, "memory limit in the kernel",
		shell(t, fmt.Sprintf(find, uid, uid, "memory.limit_in_bytes", "memory.max")), fmt.Sprint(64<<20))
	contains(t, "processor limit in the kernel",
		shell(t, fmt.Sprintf(find, uid, uid, "cpu.cfs_quota_us", "cpu.max")), "10000")
	s.eventually("the large one is refused", func() error {
		if r := s.field("pod/too-much", `.status.conditions[?(@.type=="PodScheduled")].reason`); r != "Unschedulable" {
			return fmt.Errorf("reason %q", r)
		}
		return nil
	})
}
