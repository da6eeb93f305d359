package net

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

// errMoving means that pods still have addresses of a network that this node
// gave up.
var errMoving = errors.New("pods are being remade in the node's new network")

// claimNetworks gives this node its part of the cluster CIDRs. Nobody is asked:
// the node writes it to its own Node, and gives up, as the younger, what another
// turns out to have.
//
// A first claim goes through the API. A change does not: upstream forbids it,
// since its own allocator could not follow, which does not run here. The Node is
// changed in this node's replica instead, and every API server sees it from
// there as it sees any change. To delete the Node and register it again would
// be the other way; it would take its pods with it, its lease and its volumes.
func (a *Agent) claimNetworks(ctx context.Context, nodes []*corev1.Node, peers []peer) error {
	i := slices.IndexFunc(nodes, func(n *corev1.Node) bool { return n.Name == a.cfg.NodeName })
	if i < 0 {
		return nil // not registered yet
	}
	node := nodes[i]
	want, full := claim(a.cfg.NodeName, a.cfg.Number(), a.cfg.ClusterCIDRs, peers)
	for _, cidr := range full {
		a.tell(ctx, node, corev1.EventTypeWarning, "NoPodNetwork", fmt.Sprintf("no part of %s is free for this node's pods", cidr))
	}
	have := peerOf(node).podCIDRs
	if len(want) == 0 || slices.Equal(want, have) {
		return nil
	}
	if len(have) == 0 {
		if err := a.writeClaim(ctx, want); err != nil {
			return err
		}
		a.tell(ctx, node, corev1.EventTypeNormal, "PodNetworkClaimed", fmt.Sprintf("node takes %s for its pods", text(want)))
		return nil
	}
	if a.cfg.Replace == nil {
		return fmt.Errorf("change pod networks from %s to %s: not possible here", text(have), text(want))
	}
	if err := a.cfg.Replace(ctx, text(have), text(want)); err != nil {
		return fmt.Errorf("change pod networks from %s to %s: %w", text(have), text(want), err)
	}
	a.moving = true
	a.tell(ctx, node, corev1.EventTypeWarning, "PodNetworkChanged",
		fmt.Sprintf("pod networks change from %s to %s: an older node has what this one had, or the cluster's networks are others", text(have), text(want)))
	return nil
}

func (a *Agent) writeClaim(ctx context.Context, want []netip.Prefix) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": want[0].String(), "podCIDRs": text(want)}})
	if err != nil {
		return fmt.Errorf("encode pod networks: %w", err)
	}
	_, err = a.client.CoreV1().Nodes().Patch(ctx, a.cfg.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("claim pod networks %s: %w", text(want), err)
	}
	return nil
}

func text(list []netip.Prefix) []string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// remakePods evicts, one after the other, the pods of this node that have
// addresses of networks it gave up; their controllers make them again. It
// returns errMoving while there are such.
func (a *Agent) remakePods(ctx context.Context, own []netip.Prefix) error {
	if !a.moving || len(own) == 0 {
		return nil
	}
	list, err := a.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", a.cfg.NodeName).String(),
	})
	if err != nil {
		return fmt.Errorf("list pods of this node: %w", err)
	}
	strays := straysOf(list.Items, own, a.cfg.ClusterCIDRs)
	if len(strays) == 0 {
		a.moving = false
		return nil
	}
	stray := strays[0]
	if stray.DeletionTimestamp == nil {
		a.cfg.Log.Info("evicting a pod with an address of the network this node gave up", "namespace", stray.Namespace, "pod", stray.Name, "address", stray.Status.PodIP)
		err := a.client.PolicyV1().Evictions(stray.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: stray.Namespace, Name: stray.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(stray.UID))},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("evict pod %s/%s: %w", stray.Namespace, stray.Name, err)
		}
	}
	return errMoving
}

// straysOf picks the pods that have an address in the cluster's networks that
// is not of this node's, and that somebody makes again: those on their way out
// first, then by name.
func straysOf(pods []corev1.Pod, own, clusters []netip.Prefix) []corev1.Pod {
	strays := slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		if p.Spec.HostNetwork || metav1.GetControllerOf(&p) == nil || p.Annotations[corev1.MirrorPodAnnotationKey] != "" ||
			p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			return true
		}
		return !slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool {
			addr, err := netip.ParseAddr(ip.IP)
			in := func(list []netip.Prefix) bool {
				return slices.ContainsFunc(list, func(c netip.Prefix) bool { return c.Contains(addr) })
			}
			return err == nil && in(clusters) && !in(own)
		})
	})
	slices.SortFunc(strays, func(a, b corev1.Pod) int {
		going := func(p corev1.Pod) int {
			if p.DeletionTimestamp != nil {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(going(a), going(b)), cmp.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	return strays
}

// tell logs and records an Event on the Node, once for each message in a row.
func (a *Agent) tell(ctx context.Context, node *corev1.Node, kind, reason, message string) {
	if a.told == message {
		return
	}
	a.told = message
	if kind == corev1.EventTypeWarning {
		a.cfg.Log.Warn(message, "node", node.Name)
	} else {
		a.cfg.Log.Info(message, "node", node.Name)
	}
	now := metav1.NewTime(time.Now())
	_, err := a.client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: node.Name + ".", Namespace: metav1.NamespaceDefault},
		// Kubelets name nodes in events this way, and kubectl looks for it.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: node.Name, UID: types.UID(node.Name)},
		Reason:         reason, Message: message, Type: kind,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "moot-network", Host: node.Name},
	}, metav1.CreateOptions{})
	if err != nil {
		a.cfg.Log.Debug("event not recorded", "reason", reason, "err", err)
	}
}
