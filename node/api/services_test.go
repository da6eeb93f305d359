package api_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mootkube/moot/gossip/store"
)

// checkPorts holds a node not to give out a port that a Service of another node
// has, and to give it out once that is gone.
func checkPorts(t *testing.T, nodes []*node) {
	bitmap := func(n *node) (value []byte) {
		await(t, "bitmap of ports", func(ctx context.Context) bool {
			got, err := n.store.Range(ctx, store.RangeRequest{Key: []byte("/registry/ranges/servicenodeports")})
			if err == nil && len(got.KVs) == 1 {
				value = got.KVs[0].Value
			}
			return value != nil
		})
		return value
	}
	service := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30123}},
		}}
	}
	here, there := nodes[0].client.CoreV1().Services("default"), nodes[1].client.CoreV1().Services("default")
	before := bitmap(nodes[1])
	_, err := here.Create(t.Context(), service("here"), metav1.CreateOptions{})
	check(t, err)
	await(t, "the port to be marked", func(context.Context) bool { return !bytes.Equal(before, bitmap(nodes[1])) })
	if _, err := there.Create(t.Context(), service("there"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("create with the port of another node's Service: %v", err)
	}
	check(t, here.Delete(t.Context(), "here", metav1.DeleteOptions{}))
	await(t, "the port to be free", func(ctx context.Context) bool {
		_, err := there.Create(ctx, service("there"), metav1.CreateOptions{})
		return err == nil
	})
}

// checkAddress takes the address object of a Service away; the leader makes it
// again once it sees the Service change after that. A look that comes before the
// delete has reached its cache finds nothing to do, so the Service changes again.
func checkAddress(t *testing.T, p *plane) {
	t.Helper()
	services, addresses := p.client.CoreV1().Services("default"), p.client.NetworkingV1().IPAddresses()
	service, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "addressed"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	check(t, err)
	held, err := addresses.Get(t.Context(), service.Spec.ClusterIP, metav1.GetOptions{})
	check(t, err)
	check(t, addresses.Delete(t.Context(), held.Name, metav1.DeleteOptions{}))
	looks := 0
	await(t, "the address to be repaired", func(ctx context.Context) bool {
		looks++
		_, err := services.Patch(ctx, service.Name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"look":"%d"}}}`, looks), metav1.PatchOptions{})
		if err != nil {
			return false
		}
		again, err := addresses.Get(ctx, held.Name, metav1.GetOptions{})
		return err == nil && again.UID != held.UID
	})
}
