package sched

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// patchNode queues data, if there is any, for the node or its subresources.
func (k *keeper) patchNode(ctx context.Context, node *corev1.Node, what string, data []byte, subresources ...string) {
	if data == nil {
		return
	}
	name := node.Name
	k.work.do(ctx, job{
		key: what + " " + name, node: name, version: string(node.UID) + node.ResourceVersion, pool: k.work.nodes,
		run: func(ctx context.Context) error {
			_, err := k.client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, subresources...)
			return k.said(what, name, err)
		},
	})
}

// patchPod queues data, if there is any, for the pod's status.
func (k *keeper) patchPod(ctx context.Context, pod *corev1.Pod, what string, data []byte) {
	if data == nil {
		return
	}
	namespace, name := pod.Namespace, pod.Name
	k.work.do(ctx, job{
		key: what + " " + namespace + "/" + name, node: pod.Spec.NodeName,
		version: string(pod.UID) + pod.ResourceVersion, pool: k.work.pods,
		run: func(ctx context.Context) error {
			_, err := k.client.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
			return k.said(what, namespace+"/"+name, err)
		},
	})
}

// said logs a failure that is not of the kind that solves itself.
func (k *keeper) said(what, about string, err error) error {
	if err == nil {
		return nil
	}
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		k.log.Warn("cannot "+what, "object", about, "err", err)
	}
	return fmt.Errorf("%s %s: %w", what, about, err)
}

// renewLease queues the renewal of the node's Lease when it is time. The Leases
// here are of this node's store: those the other kubelets write stay in theirs.
func (k *keeper) renewLease(ctx context.Context, node *corev1.Node) {
	name, uid := node.Name, node.UID
	k.work.doEvery(ctx, job{
		key: "renew lease " + name, node: name, pool: k.work.nodes,
		run: func(ctx context.Context) error {
			return k.said("renew lease of node", name, k.writeLease(ctx, name, uid))
		},
	}, k.cfg.NodeGrace/leasesPerGrace)
}

func (k *keeper) writeLease(ctx context.Context, name string, owner types.UID) error {
	spec := coordinationv1.LeaseSpec{
		HolderIdentity: &name, LeaseDurationSeconds: new(int32(k.cfg.NodeGrace.Seconds())), RenewTime: new(metav1.NowMicro()),
	}
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: corev1.NamespaceNodeLease,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: owner}},
		},
		Spec: spec,
	}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"ownerReferences": lease.OwnerReferences}, "spec": spec,
	})
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	_, err = leases.Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
	}
	return err
}

// remove queues the deletion of what a member that has left leaves behind: the
// Node first, or its pods would be made again on it. What was made since it
// left is not its own: it has come back, and the membership says so soon.
func (k *keeper) remove(ctx context.Context, m NodeHealth, node *corev1.Node) {
	isOlder := func(o metav1.Object) bool { return o.GetCreationTimestamp().Time.Before(m.Since) }
	if node != nil {
		if isOlder(node) {
			k.removeNode(ctx, m.Name, node.UID)
		}
		return
	}
	for _, pod := range k.view.podsOf(byNode, m.Name) {
		if isOlder(pod) {
			k.removePod(ctx, pod)
		}
	}
}

func (k *keeper) removeNode(ctx context.Context, name string, uid types.UID) {
	k.work.do(ctx, job{
		key: "remove node " + name, node: name, version: string(uid), pool: k.work.nodes,
		run: func(ctx context.Context) error {
			err := k.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
			if err != nil && !apierrors.IsNotFound(err) {
				return k.said("remove node", name, err)
			}
			err = k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Delete(ctx, name, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return k.said("remove lease of node", name, err)
			}
			k.log.Info("removed node", "node", name)
			return nil
		},
	})
}

// removePod ends a pod that no kubelet will end. As upstream's collector of
// orphaned pods does, only at once, it says first that the pod failed: Jobs
// count that.
func (k *keeper) removePod(ctx context.Context, pod *corev1.Pod) {
	what, about := "remove pod", pod.Namespace+"/"+pod.Name
	failed := patch{Metadata: metaOf(pod), Status: &patchStat{
		Phase: string(corev1.PodFailed),
		Conditions: []patchCondition{{
			Type: string(corev1.DisruptionTarget), Status: string(corev1.ConditionTrue), LastTransitionTime: new(metav1.NewTime(time.Now())),
			Reason: new("MemberLeft"), Message: new("Its node has left the cluster."),
		}},
	}}.encode()
	isOver := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	k.work.do(ctx, job{
		key: what + " " + about, node: pod.Spec.NodeName, version: string(pod.UID) + pod.ResourceVersion, pool: k.work.pods,
		run: func(ctx context.Context) error {
			pods := k.client.CoreV1().Pods(pod.Namespace)
			if !isOver {
				if _, err := pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, failed, metav1.PatchOptions{}, "status"); err != nil {
					return k.said(what, about, err)
				}
			}
			return k.said(what, about, pods.Delete(ctx, pod.Name, metav1.DeleteOptions{
				GracePeriodSeconds: new(int64(0)), Preconditions: &metav1.Preconditions{UID: &pod.UID},
			}))
		},
	})
}
