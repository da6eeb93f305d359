package sched

import (
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// apply is what the API server makes of a patch.
func apply[T any](t *testing.T, obj *T, patch []byte) *T {
	t.Helper()
	if patch == nil {
		return obj
	}
	before, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	var out T
	after, err := strategicpatch.StrategicMergePatch(before, patch, out)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(after, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func testNode(status corev1.ConditionStatus) *corev1.Node {
	past := metav1.NewTime(time.Unix(1_700_000_000, 0))
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n2", UID: "u", ResourceVersion: "7"},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoExecute}}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory", LastTransitionTime: past},
			{Type: corev1.NodeReady, Status: status, Reason: "KubeletSays", LastHeartbeatTime: past, LastTransitionTime: past},
		}},
	}
}

func testPod(ready corev1.ConditionStatus) *corev1.Pod {
	past := metav1.NewTime(time.Unix(1_700_000_000, 0))
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u", ResourceVersion: "7"},
		Spec:       corev1.PodSpec{NodeName: "n2"},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.ContainersReady, Status: ready, ObservedGeneration: 1, LastTransitionTime: past},
			{Type: corev1.PodReady, Status: ready, ObservedGeneration: 1, LastTransitionTime: past},
		}},
	}
}

func TestGiveUpNode(t *testing.T) {
	now := at(0)
	for _, status := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse} {
		before := testNode(status)
		gone := apply(t, before, giveUpNode(before, 5, now))
		c := nodeReady(gone)
		if c.Status != corev1.ConditionUnknown || c.Reason != reasonDead || c.LastHeartbeatTime.IsZero() {
			t.Fatalf("given up: %+v", c)
		}
		if since, is := givenUp(gone); !is || !since.Equal(now) {
			t.Errorf("given up since %s, %t", since, is)
		}
		if len(gone.Status.Conditions) != 2 || gone.Status.Conditions[0].Status != corev1.ConditionFalse {
			t.Errorf("other conditions have changed: %+v", gone.Status.Conditions)
		}
		if giveUpNode(gone, 5, now) != nil {
			t.Error("given up twice")
		}
		if takeBackNode(gone, 6, now) != nil {
			t.Error("taken back for another run of the member")
		}
		if back := nodeReady(apply(t, gone, takeBackNode(gone, 5, now))); back.Status != status || back.Reason == reasonDead {
			t.Errorf("was %s, taken back as %+v", status, back)
		}
	}
	if n := testNode(corev1.ConditionUnknown); giveUpNode(n, 5, now) != nil || takeBackNode(n, 5, now) != nil {
		t.Error("upstream's mark was touched")
	}
	fresh := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}
	if giveUpNode(fresh, 5, now) != nil {
		t.Error("gave up a node that never reported")
	}
	if _, is := givenUp(fresh); is {
		t.Error("a node that never reported counts as given up")
	}
}

func TestTaintNode(t *testing.T) {
	before := testNode(corev1.ConditionTrue)
	if taintNode(before, false) != nil {
		t.Error("opened a node that is open")
	}
	closed := before.DeepCopy()
	var patch patch
	if err := json.Unmarshal(taintNode(before, true), &patch); err != nil {
		t.Fatal(err)
	}
	closed.Spec.Taints = patch.Spec.Taints // the list is replaced as a whole
	if len(closed.Spec.Taints) != 2 || closed.Spec.Taints[0].Key != "mine" || !hasTaint(closed) || taintNode(closed, true) != nil {
		t.Errorf("closed: %+v", closed.Spec.Taints)
	}
	if patch.Metadata.ResourceVersion != "7" || patch.Metadata.UID != "u" {
		t.Errorf("the patch would overwrite others' taints: %+v", patch.Metadata)
	}
	if err := json.Unmarshal(taintNode(closed, false), &patch); err != nil {
		t.Fatal(err)
	}
	if len(patch.Spec.Taints) != 1 || patch.Spec.Taints[0].Key != "mine" {
		t.Errorf("opened: %+v", patch.Spec.Taints)
	}
	last := &corev1.Node{Spec: corev1.NodeSpec{Taints: closed.Spec.Taints[1:]}}
	if open := apply(t, last, taintNode(last, false)); hasTaint(open) {
		t.Error("the last taint stays")
	}
}

// After a blink the pod is to the letter what its kubelet made it.
func TestSilencePod(t *testing.T) {
	before := testPod(corev1.ConditionTrue)
	silent := apply(t, before, silencePod(before, 5))
	c := podReady(silent)
	if c.Status != corev1.ConditionFalse || !isSilenced(silent) || !c.LastTransitionTime.Equal(&before.Status.Conditions[1].LastTransitionTime) {
		t.Fatalf("silenced: %+v", c)
	}
	if silencePod(silent, 5) != nil || restorePod(before, 5) != nil {
		t.Error("done twice")
	}
	if restorePod(silent, 6) != nil {
		t.Error("restored for another run of the member: its kubelet must say how the pod is")
	}
	if back := apply(t, silent, restorePod(silent, 5)); !equality.Semantic.DeepEqual(back.Status, before.Status) {
		t.Errorf("restored:\n%+v\nwas:\n%+v", back.Status, before.Status)
	}
	unready := testPod(corev1.ConditionFalse)
	if silencePod(unready, 5) != nil || restorePod(unready, 5) != nil {
		t.Error("touched what its kubelet says is not ready")
	}
}

// What is left of an object is all that the decisions look at.
func TestStripKeepsWhatMatters(t *testing.T) {
	pod, node := testPod(corev1.ConditionTrue), testNode(corev1.ConditionTrue)
	pod.Labels = map[string]string{"big": "one"}
	node.Status.Images = make([]corev1.ContainerImage, 50)
	small, err := strip(pod.DeepCopy())
	if err != nil || small.(*corev1.Pod).Labels != nil || string(silencePod(small.(*corev1.Pod), 5)) != string(silencePod(pod, 5)) {
		t.Errorf("stripped pod: %+v, %v", small, err)
	}
	less, err := strip(node.DeepCopy())
	if err != nil || less.(*corev1.Node).Status.Images != nil {
		t.Fatalf("stripped node: %+v, %v", less, err)
	}
	n := less.(*corev1.Node)
	if string(giveUpNode(n, 5, at(0))) != string(giveUpNode(node, 5, at(0))) || string(taintNode(n, true)) != string(taintNode(node, true)) {
		t.Error("another decision about the stripped node")
	}
	if !sameNode(n, node) || !samePod(small.(*corev1.Pod), pod) {
		t.Error("stripping counts as a change")
	}
}
