package sched

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What the leader writes into other parts' objects says who wrote it and about
// which run of the member's daemon. A mark is taken back only when it is, to
// the letter, what would be written about the run that now answers: a member
// that started anew has a kubelet that says itself how things are.
const (
	reasonDead   = "MemberDead"   // of a Node's condition Ready
	reasonSilent = "MemberSilent" // of a pod's condition Ready

	// taintAway keeps new pods from a node that is expected back.
	taintAway = "moot.local/member-away"
)

// messageDead is the message of a Node given up.
func messageDead(name string, birth uint64, wasReady bool) string {
	was := "ready"
	if !wasReady {
		was = "not ready"
	}
	return fmt.Sprintf("Member %s (run %x) is dead; the node was %s.", name, birth, was)
}

// messageSilent is the message of a pod taken out of the endpoints.
func messageSilent(name string, birth uint64) string {
	return fmt.Sprintf("Member %s (run %x) does not answer.", name, birth)
}

func nodeReady(node *corev1.Node) corev1.NodeCondition {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func podReady(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c
		}
	}
	return corev1.PodCondition{}
}

// givenUp says since when the node is given up, by a leader or by upstream.
func givenUp(node *corev1.Node) (since time.Time, is bool) {
	c := nodeReady(node)
	return c.LastTransitionTime.Time, c.Status == corev1.ConditionUnknown
}

// patch is a strategic merge patch of what the leader writes.
type patch struct {
	Metadata patchMeta  `json:"metadata"`
	Spec     *patchSpec `json:"spec,omitempty"`
	Status   *patchStat `json:"status,omitempty"`
}

// patchMeta makes the patch fail on any version but the one looked at.
type patchMeta struct {
	UID             types.UID `json:"uid"`
	ResourceVersion string    `json:"resourceVersion"`
}

type patchSpec struct {
	Taints []corev1.Taint `json:"taints"`
}

type patchStat struct {
	Phase      string           `json:"phase,omitempty"`
	Conditions []patchCondition `json:"conditions"`
}

// patchCondition leaves out what stays as it is; a nil text is taken away.
type patchCondition struct {
	Type               string       `json:"type"`
	Status             string       `json:"status"`
	Reason             *string      `json:"reason"`
	Message            *string      `json:"message"`
	LastTransitionTime *metav1.Time `json:"lastTransitionTime,omitempty"`
}

func metaOf(o metav1.Object) patchMeta {
	return patchMeta{UID: o.GetUID(), ResourceVersion: o.GetResourceVersion()}
}

func (p patch) encode() []byte {
	data, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("encode patch: %v", err)) // plain strings and times
	}
	return data
}

// giveUpNode makes the node's Ready condition Unknown, or is nil when it is.
func giveUpNode(node *corev1.Node, birth uint64, now time.Time) []byte {
	c := nodeReady(node)
	if c.Status == corev1.ConditionUnknown || c.Type == "" {
		return nil
	}
	reason, message, at := reasonDead, messageDead(node.Name, birth, c.Status == corev1.ConditionTrue), metav1.NewTime(now)
	return patch{Metadata: metaOf(node), Status: &patchStat{Conditions: []patchCondition{{
		Type: string(corev1.NodeReady), Status: string(corev1.ConditionUnknown), Reason: &reason, Message: &message, LastTransitionTime: &at,
	}}}}.encode()
}

// takeBackNode undoes giveUpNode for the same run of the member, or is nil.
func takeBackNode(node *corev1.Node, birth uint64, now time.Time) []byte {
	c := nodeReady(node)
	if c.Status != corev1.ConditionUnknown || c.Reason != reasonDead {
		return nil
	}
	status, reason := corev1.ConditionTrue, "KubeletReady"
	switch c.Message {
	case messageDead(node.Name, birth, true):
	case messageDead(node.Name, birth, false):
		status, reason = corev1.ConditionFalse, "KubeletNotReady"
	default:
		return nil
	}
	message, at := "The member answers again; its kubelet reports next.", metav1.NewTime(now)
	return patch{Metadata: metaOf(node), Status: &patchStat{Conditions: []patchCondition{{
		Type: string(corev1.NodeReady), Status: string(status), Reason: &reason, Message: &message, LastTransitionTime: &at,
	}}}}.encode()
}

func isAway(t corev1.Taint) bool { return t.Key == taintAway }

func hasTaint(node *corev1.Node) bool { return slices.ContainsFunc(node.Spec.Taints, isAway) }

// taintNode adds or removes the leader's taint, or is nil when that is so.
func taintNode(node *corev1.Node, away bool) []byte {
	if hasTaint(node) == away {
		return nil
	}
	taints := slices.DeleteFunc(append([]corev1.Taint{}, node.Spec.Taints...), isAway)
	if away {
		taints = append(taints, corev1.Taint{Key: taintAway, Effect: corev1.TaintEffectNoSchedule})
	}
	return patch{Metadata: metaOf(node), Spec: &patchSpec{Taints: taints}}.encode()
}

// isSilenced reports whether a leader took the pod out of the endpoints.
func isSilenced(pod *corev1.Pod) bool {
	c := podReady(pod)
	return c.Status == corev1.ConditionFalse && c.Reason == reasonSilent
}

// silencePod makes a ready pod not ready, or is nil. The time of the last
// transition stays: if the node only blinked, the pod is afterwards, to the
// letter, what its kubelet made it, and available for as long as it was.
func silencePod(pod *corev1.Pod, birth uint64) []byte {
	if podReady(pod).Status != corev1.ConditionTrue {
		return nil
	}
	reason, message := reasonSilent, messageSilent(pod.Spec.NodeName, birth)
	return patch{Metadata: metaOf(pod), Status: &patchStat{Conditions: []patchCondition{{
		Type: string(corev1.PodReady), Status: string(corev1.ConditionFalse), Reason: &reason, Message: &message,
	}}}}.encode()
}

// restorePod undoes silencePod for the same run of the member, or is nil.
func restorePod(pod *corev1.Pod, birth uint64) []byte {
	if !isSilenced(pod) || podReady(pod).Message != messageSilent(pod.Spec.NodeName, birth) {
		return nil
	}
	return patch{Metadata: metaOf(pod), Status: &patchStat{Conditions: []patchCondition{{
		Type: string(corev1.PodReady), Status: string(corev1.ConditionTrue),
	}}}}.encode()
}
