package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mootkube/moot/node/pki"
)

// How long a node that leaves waits for its pods to end, and for the others to
// have what it knows.
const (
	drainWithin = 2 * time.Minute
	leaveWithin = 30 * time.Second
	drainPoll   = 500 * time.Millisecond
)

// departure takes nodes out of the cluster: this one, which lives, or another
// that is dead.
type departure struct {
	n       *Node
	keys    *pki.Bundle
	replica *replica
	member  *membership
}

// Leave moves this node's pods away, hands over and ends the daemon for good.
func (d *departure) Leave(ctx context.Context, say func(string)) error {
	client, err := adminClient(d.keys)
	if err != nil {
		return err
	}
	others := 0
	for _, m := range d.replica.agent.Members() {
		if m.Live() && !m.Self {
			others++
		}
	}
	if others == 0 {
		return errors.New("no other member is alive: what this node alone holds would be lost; stop the daemon instead, or remove its data directory")
	}
	say("moving pods away")
	if err := drain(ctx, client, d.n.cfg.NodeName); err != nil {
		return err
	}
	say("handing over")
	// From here on it is not given up halfway when who asked for it goes away: a
	// node without its Node is of no use, and its kubelet makes none.
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
	defer cancel()
	node, err := takeNode(leaving, client, d.n.cfg.NodeName)
	if err != nil {
		return err
	}
	d.n.leaving.Store(true) // its own removal is no surprise
	if err := d.replica.agent.Leave(leaving); err != nil {
		d.n.leaving.Store(false)
		staying, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
		defer cancel()
		return errors.Join(fmt.Errorf("%w; this node stays a member: try again, or kubectl uncordon %s", err, d.n.cfg.NodeName), putBack(staying, client, node))
	}
	if err := d.n.amend(d.member, func() { d.member.Left = true }); err != nil {
		return err
	}
	say("left; the daemon ends")
	d.n.leftOnce.Do(func() { close(d.n.left) })
	return nil
}

// Remove takes a dead member off the register and deletes its Node and pods.
func (d *departure) Remove(ctx context.Context, name string, say func(string)) error {
	if name == d.n.cfg.NodeName {
		return errors.New("this is the node itself; to take it out, run moot leave")
	}
	client, err := adminClient(d.keys)
	if err != nil {
		return err
	}
	if err := d.replica.agent.Remove(ctx, name); err != nil {
		return err
	}
	say("deleting its Node and pods")
	return forgetNode(ctx, client, name)
}

func adminClient(keys *pki.Bundle) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", keys.Admin)
	if err != nil {
		return nil, fmt.Errorf("load administrator's kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make administrator's client: %w", err)
	}
	return client, nil
}

// drain takes new pods off the node and deletes those that others make again
// elsewhere, until they have ended.
func drain(ctx context.Context, client kubernetes.Interface, node string) error {
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	patch := []byte(`{"spec":{"unschedulable":true}}`)
	_, err := client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil // it never ran pods
	}
	if err != nil {
		return fmt.Errorf("cordon node %s: %w", node, err)
	}
	err = wait.PollUntilContextCancel(ctx, drainPoll, true, func(ctx context.Context) (bool, error) {
		pods, err := podsOf(ctx, client, node)
		if err != nil {
			return false, nil // asked again
		}
		left := 0
		for i := range pods {
			pod := &pods[i]
			if stays(pod) {
				continue
			}
			left++
			if pod.DeletionTimestamp == nil {
				_ = client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}) // found again if it failed
			}
		}
		return left == 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the pods of %s to end: %w", node, err)
	}
	return nil
}

// stays reports whether a pod lives and dies with its node.
func stays(pod *corev1.Pod) bool {
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return true
	}
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet"
}

func podsOf(ctx context.Context, client kubernetes.Interface, node string) ([]corev1.Pod, error) {
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", node, err)
	}
	return list.Items, nil
}

// takeNode is forgetNode, and returns the Node, nil if there was none.
func takeNode(ctx context.Context, client kubernetes.Interface, name string) (*corev1.Node, error) {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		node = nil
	case err != nil:
		return nil, fmt.Errorf("read node %s: %w", name, err)
	}
	return node, forgetNode(ctx, client, name)
}

// putBack makes a Node that was taken anew: a kubelet makes one at its start only.
func putBack(ctx context.Context, client kubernetes.Interface, node *corev1.Node) error {
	if node == nil {
		return nil
	}
	node = node.DeepCopy()
	node.UID, node.ResourceVersion = "", ""
	if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("put node %s back: %w; restart its daemon", node.Name, err)
	}
	return nil
}

// forgetNode deletes what the cluster holds of a node that is gone: its pods at
// once, since nobody is there to end them, and its Node.
func forgetNode(ctx context.Context, client kubernetes.Interface, node string) error {
	pods, err := podsOf(ctx, client, node)
	if err != nil {
		return err
	}
	var errs []error
	var now int64
	for i := range pods {
		err := client.CoreV1().Pods(pods[i].Namespace).Delete(ctx, pods[i].Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete pod %s/%s: %w", pods[i].Namespace, pods[i].Name, err))
		}
	}
	if err := client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("delete node %s: %w", node, err))
	}
	return errors.Join(errs...)
}
