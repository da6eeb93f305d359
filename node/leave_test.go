package node

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// A node that could not leave has its Node as before, which a kubelet does not make
// a second time.
func TestNodeIsPutBack(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "first", Labels: map[string]string{"disk": "ssd"}},
		Spec:       corev1.NodeSpec{Unschedulable: true},
	})
	for _, name := range []string{"n1", "n2"} { // one that runs no kubelet has none
		node, err := takeNode(t.Context(), client, name)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil || name == "n1" && len(list.Items) != 0 {
			t.Errorf("%s was not taken: %v, %v", name, list.Items, err)
		}
		for range 2 { // also where the kubelet was quicker
			if err := putBack(t.Context(), client, node); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("nodes %v, %v", list, err)
	}
	if got := list.Items[0]; got.UID == "first" || got.Labels["disk"] != "ssd" || !got.Spec.Unschedulable {
		t.Errorf("put back: %+v", got)
	}
}
