package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// An address that both sides of a cut are asked for.
const (
	twiceIP   = "10.43.211.211"
	twicePort = int32(31999)
)

// expose makes a Service that asks for the one address.
func (s *split) expose(ctx context.Context, via, name string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	_, err = c.CoreV1().Services(s.name).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: twiceIP, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Port: 80, NodePort: twicePort}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create service %s on %s: %w", name, via, err)
	}
	return nil
}

// mergedAddresses looks at the Services that were given one address: one of
// them keeps it, the other has got another and says so.
func (s *split) mergedAddresses(ctx context.Context) error {
	var moved corev1.Service
	for _, node := range s.Nodes {
		c, err := s.Client(node)
		if err != nil {
			return err
		}
		err = s.eventually(ctx, "addresses given once, on "+node, func(ctx context.Context) error {
			left, err := c.CoreV1().Services(s.name).Get(ctx, "twice-left", metav1.GetOptions{})
			if err != nil {
				return err
			}
			right, err := c.CoreV1().Services(s.name).Get(ctx, "twice-right", metav1.GetOptions{})
			if err != nil {
				return err
			}
			both := []*corev1.Service{left, right}
			kept := slices.IndexFunc(both, func(x *corev1.Service) bool {
				return x.Spec.ClusterIP == twiceIP && x.Spec.Ports[0].NodePort == twicePort
			})
			if kept < 0 {
				return errors.New("nobody kept the address")
			}
			moved = *both[1-kept]
			if moved.Spec.Type != corev1.ServiceTypeNodePort || moved.Spec.ClusterIP == "" || moved.Spec.ClusterIP == twiceIP ||
				moved.Spec.Ports[0].NodePort == 0 || moved.Spec.Ports[0].NodePort == twicePort {
				return fmt.Errorf("%s has %s and %v", moved.Name, moved.Spec.ClusterIP, moved.Spec.Ports)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := s.told(ctx, s.left[0], moved.Name); err != nil {
		return err
	}
	s.Printf("one address given to two Services: %s got %s and node port %d instead, an Event tells", moved.Name, moved.Spec.ClusterIP, moved.Spec.Ports[0].NodePort)
	return nil
}
