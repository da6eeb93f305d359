package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/testbed"
)

// space is a namespace of a scenario's own, with which it works through the
// API of any node.
type space struct {
	*Bed
	name string
}

// space creates a namespace, whose pods are accepted when it returns. Names
// are not used again: a second round has a namespace of its own.
func (b *Bed) space(ctx context.Context, name, via string) (*space, error) {
	s := &space{Bed: b, name: fmt.Sprintf("%s-%d", name, time.Now().UnixMilli()%1e7)}
	c, err := b.Client(via)
	if err != nil {
		return nil, err
	}
	err = b.eventually(ctx, "create namespace "+s.name, func(ctx context.Context) error {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
		_, err := c.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// Pods are refused until a controller has made the account.
	return s, b.eventually(ctx, "the default service account of "+s.name, func(ctx context.Context) error {
		_, err := c.CoreV1().ServiceAccounts(s.name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// end deletes the namespace, for the nodes' sake: its pods need not run on.
func (s *space) end(ctx context.Context, via string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	err = c.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", s.name, err)
	}
	return nil
}

// config creates a ConfigMap.
func (s *space) config(ctx context.Context, via, name string, data map[string]string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	_, err = c.CoreV1().ConfigMaps(s.name).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create %s on %s: %w", name, via, err)
	}
	return nil
}

// patch sets fields of a ConfigMap's data and leaves the others.
func (s *space) patch(ctx context.Context, via, name string, data map[string]string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	_, err = c.CoreV1().ConfigMaps(s.name).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("patch %s on %s: %w", name, via, err)
	}
	return nil
}

// data reads a ConfigMap; nil when it is not there.
func (s *space) data(ctx context.Context, via, name string) (map[string]string, error) {
	c, err := s.Client(via)
	if err != nil {
		return nil, err
	}
	m, err := c.CoreV1().ConfigMaps(s.name).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s on %s: %w", name, via, err)
	}
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	return m.Data, nil
}

// deploy creates a Deployment of the web app, spread over the nodes, behind a
// Service of the same name, unless they are there.
func (s *space) deploy(ctx context.Context, via, name string, replicas int32) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	labels := map[string]string{"app": name}
	_, err = c.CoreV1().Services(s.name).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err == nil || exists(err) {
		_, err = c.AppsV1().Deployments(s.name).Create(ctx, deployment(name, labels, replicas), metav1.CreateOptions{})
	}
	if err != nil && !exists(err) {
		return fmt.Errorf("deploy %s on %s: %w", name, via, err)
	}
	return nil
}

func deployment(name string, labels map[string]string, replicas int32) *appsv1.Deployment {
	grace := int64(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &grace,
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
					}},
					Containers: []corev1.Container{{
						Name: "web", Image: testbed.DemoImage, ImagePullPolicy: corev1.PullIfNotPresent, Env: whoEnv(),
						ReadinessProbe: &corev1.Probe{
							PeriodSeconds: 1,
							ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)}},
						},
					}},
				},
			},
		},
	}
}

// whoEnv lets the web app name its pod and its node.
func whoEnv() []corev1.EnvVar {
	var env []corev1.EnvVar
	for _, v := range [][2]string{{"POD", "metadata.name"}, {"NODE", "spec.nodeName"}} {
		env = append(env, corev1.EnvVar{Name: v[0], ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{FieldPath: v[1]},
		}})
	}
	return env
}

// scale sets the replicas of a Deployment.
func (s *space) scale(ctx context.Context, via, name string, replicas int) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	_, err = c.AppsV1().Deployments(s.name).Patch(ctx, name, types.MergePatchType,
		fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("scale %s on %s: %w", name, via, err)
	}
	return nil
}

// pods lists the pods of a Deployment that are not on their way out.
func (s *space) pods(ctx context.Context, via, name string) ([]corev1.Pod, error) {
	c, err := s.Client(via)
	if err != nil {
		return nil, err
	}
	all, err := c.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s on %s: %w", name, via, err)
	}
	return slices.DeleteFunc(all.Items, func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	}), nil
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// settled is an error unless a Deployment has exactly the pods it declares, all
// ready, on nodes among those given, and its status says so.
func (s *space) settled(ctx context.Context, via, name string, nodes []string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	d, err := c.AppsV1().Deployments(s.name).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read deployment %s on %s: %w", name, via, err)
	}
	want := int(*d.Spec.Replicas)
	pods, err := s.pods(ctx, via, name)
	if err != nil {
		return err
	}
	well := 0
	for _, p := range pods {
		if ready(p) && slices.Contains(nodes, p.Spec.NodeName) {
			well++
		}
	}
	if len(pods) != want || well != want {
		return fmt.Errorf("%s on %s: %d pods, %d of them ready on %s, want %d: %s",
			name, via, len(pods), well, strings.Join(nodes, " "), want, describe(pods))
	}
	if st := d.Status; st.ObservedGeneration < d.Generation || int(st.Replicas) != want || int(st.AvailableReplicas) != want {
		return fmt.Errorf("%s on %s: generation %d, status %+v", name, via, d.Generation, st)
	}
	return nil
}

func describe(pods []corev1.Pod) string {
	var out []string
	for _, p := range pods {
		state := string(p.Status.Phase)
		if ready(p) {
			state = "ready"
		}
		out = append(out, fmt.Sprintf("%s on %s %s", p.Name, p.Spec.NodeName, state))
	}
	return strings.Join(out, ", ")
}

// settle waits until a Deployment is settled on the given nodes.
func (s *space) settle(ctx context.Context, via, name string, nodes []string) error {
	return s.eventually(ctx, "deployment "+name, func(ctx context.Context) error {
		return s.settled(ctx, via, name, nodes)
	})
}

// exists reports whether something was there already: a request that failed
// for its client may have been carried out.
func exists(err error) bool {
	status := apierrors.APIStatus(nil)
	return errors.As(err, &status) && status.Status().Reason == metav1.StatusReasonAlreadyExists
}

// missing reports whether what was asked for is not there.
func missing(err error) bool {
	status := apierrors.APIStatus(nil)
	return errors.As(err, &status) && status.Status().Reason == metav1.StatusReasonNotFound
}
