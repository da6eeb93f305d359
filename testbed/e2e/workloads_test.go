package e2e

import (
	"fmt"
	"strings"
	"testing"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: $IMAGE
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// The main job: deployed with kubectl, serving, healing, rolled out and back.
func TestDeployment(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(deployment)
	s.rollout("deployment/web")
	ip := s.field("service/web", ".spec.clusterIP")
	s.answers("http://"+ip+"/", "hello from web-")
	podIP := s.field("pods", ".items[0].status.podIP")
	s.answers("http://"+podIP+":8080/", "hello from web-")

	s.kubectl("delete", "pod", "-l", "app=web", "--wait=false")
	s.eventually("two new pods", func() error {
		if n := s.field("deployment/web", ".status.readyReplicas"); n != "2" {
			return fmt.Errorf("%s ready", n)
		}
		return nil
	})

	s.kubectl("set", "image", "deployment/web", "web="+image2)
	s.rollout("deployment/web")
	s.eventually("only the new image", func() error {
		if got := s.field("pods", ".items[*].spec.containers[0].image"); got != image2+" "+image2 {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	s.kubectl("rollout", "undo", "deployment/web")
	s.rollout("deployment/web")
	contains(t, "image after undo", s.field("deployment/web", ".spec.template.spec.containers[0].image"), image)
	s.kubectl("scale", "deployment/web", "--replicas=1")
	s.eventually("scaled down", func() error {
		if n := s.field("deployment/web", ".status.replicas"); n != "1" {
			return fmt.Errorf("%s replicas", n)
		}
		return nil
	})
	contains(t, "history", s.kubectl("rollout", "history", "deployment/web"), "REVISION")
	s.answers("http://"+ip+"/", "hello from web-")
}

func TestStatefulSet(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: $IMAGE
        volumeMounts: [{name: data, mountPath: /data}]
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`)
	s.rollout("statefulset/db")
	s.kubectl("exec", "db-1", "--", "/web", "write", "/data/f", "kept by db-1")
	// Its name resolves, from another pod.
	s.eventually("db-1 by name", func() error {
		_, err := s.try("", "exec", "db-0", "--", "/web", "get", "http://db-1.db:8080/")
		return err
	})
	s.kubectl("delete", "pod", "db-1")
	s.rollout("statefulset/db")
	s.wait("condition=Ready", "pod/db-1")
	contains(t, "the new db-1", s.kubectl("exec", "db-1", "--", "/web", "cat", "/data/f"), "kept by db-1")
}

func TestDaemonSet(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: $IMAGE, args: [sleep, "3600"]}]
`)
	s.rollout("daemonset/agent")
	equal(t, "agents ready", s.field("daemonset/agent", ".status.numberReady"), "1")
	contains(t, "a pod on the host's network", s.field("pods", ".items[0].status.podIP"), "10.77.0.11")
}

func TestJobAndCronJob(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: three}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: web, image: $IMAGE, args: [echo, done]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: failing}
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{name: web, image: $IMAGE, args: [exit, "3"]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: web, image: $IMAGE, args: [echo, tick]}]
`)
	s.wait("condition=Complete", "job/three")
	equal(t, "completions", s.field("job/three", ".status.succeeded"), "3")
	contains(t, "the job's log", s.kubectl("logs", "job/three"), "done")
	s.wait("condition=Failed", "job/failing")
	contains(t, "exit statuses", s.field("pods", ".items[*].status.containerStatuses[*].state.terminated.exitCode"), "3")
	s.kubectl("create", "job", "now", "--from=cronjob/often")
	s.wait("condition=Complete", "job/now")
	s.eventually("the cron job's own job", func() error {
		// The job made by hand counts as the cron job's too, but for its name.
		if out := s.kubectl("get", "jobs", "-o", "name"); !strings.Contains(out, "job.batch/often-") {
			return fmt.Errorf("has not run: %s", out)
		}
		return nil
	})
	s.kubectl("delete", "cronjob/often")
	s.eventually("its jobs are collected", func() error {
		if out := s.kubectl("get", "jobs", "-o", "name"); strings.Contains(out, "job.batch/often-") {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
}
