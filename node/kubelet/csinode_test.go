package kubelet

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/volume/csi"
)

// What the attach controller of a term does to the whole process is undone.
func TestCSINodeStaysThisNodes(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	controller := csiHost{client: client} // which is on no node
	if err := csi.ProbeVolumePlugins()[0].Init(controller); err != nil {
		t.Fatal(err)
	}
	before := csiNode
	if err := before.InitializeCSINodeWithAnnotation(); err == nil {
		t.Fatal("the controller's CSINode can be written: there is nothing to undo")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keepCSINode(ctx, "n1", client) }()
	for range 2 {
		err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, 20*time.Second, true, func(context.Context) (bool, error) {
			return csiNode.InitializeCSINodeWithAnnotation() == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		csiNode = before
	}
	if _, err := client.StorageV1().CSINodes().Get(ctx, "n1", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
