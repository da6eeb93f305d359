package e2e

import (
	"fmt"
	"testing"
)

// A claim is bound when its first pod comes, outlives that pod, and its files
// go with it.
func TestPersistentVolumeClaim(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Mi}}}
`)
	s.eventually("the claim waits for a consumer", func() error {
		if out := s.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}"); out == "" {
			return fmt.Errorf("no event")
		}
		return nil
	})
	equal(t, "phase before the first pod", s.field("pvc/data", ".status.phase"), "Pending")
	const writer = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  containers: [{name: web, image: $IMAGE, args: %s, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`
	s.apply(fmt.Sprintf(writer, "writer", `[write, /data/f, "kept"]`))
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/writer")
	equal(t, "phase after", s.field("pvc/data", ".status.phase"), "Bound")
	s.kubectl("delete", "pod", "writer")
	s.apply(fmt.Sprintf(writer, "reader", `[cat, /data/f]`))
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/reader")
	equal(t, "what the second pod reads", s.kubectl("logs", "reader"), "kept")

	volume := s.field("pvc/data", ".spec.volumeName")
	path := s.field("pv/"+volume, ".spec.local.path")
	if path == "" {
		path = s.field("pv/"+volume, ".spec.hostPath.path")
	}
	equal(t, "the file on the node", shell(t, "cat '"+path+"/f'"), "kept")
	s.kubectl("delete", "pod", "reader")
	s.kubectl("delete", "pvc", "data")
	s.eventually("the volume is gone", func() error {
		if out := s.kubectl("get", "pv", volume, "--ignore-not-found", "-o", "name"); out != "" {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
	s.eventually("its files are gone", func() error {
		_, err := tryOn(t.Context(), "", "test", "!", "-e", path)
		return err
	})
}
