package scenario

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// hooked has every API server ask a webhook in a pod on the first node.
func (s *shop) hooked(ctx context.Context) (string, error) {
	c, err := s.Client(s.via)
	if err != nil {
		return "", err
	}
	cert, key, err := serverSecret("hook." + s.name + ".svc")
	if err != nil {
		return "", err
	}
	if _, err := c.CoreV1().Secrets(s.name).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
	}, metav1.CreateOptions{}); err != nil {
		return "", err
	}
	err = s.runPod(ctx, "hook", s.Nodes[0], func(spec *corev1.PodSpec) {
		spec.Volumes = []corev1.Volume{{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "hook"}}}}
		app := &spec.Containers[0]
		app.Args = []string{"webhook"}
		app.VolumeMounts = []corev1.VolumeMount{{Name: "certs", MountPath: "/certs"}}
		app.ReadinessProbe.HTTPGet.Port, app.ReadinessProbe.HTTPGet.Scheme = intstr.FromInt32(8443), corev1.URISchemeHTTPS
	})
	if err != nil {
		return "", err
	}
	_, err = s.expose(ctx, "hook", "hook", corev1.ServiceTypeClusterIP, func(spec *corev1.ServiceSpec) {
		spec.Ports = []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}}
	})
	if err != nil {
		return "", err
	}
	if err := s.podReady(ctx, "hook"); err != nil {
		return "", err
	}
	hooks := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := hooks.Create(ctx, s.webhook(cert), metav1.CreateOptions{}); err != nil {
		return "", err
	}
	var errs []error
	for _, node := range s.Nodes {
		errs = append(errs, s.soon(ctx, "the webhook asked by "+node, func(ctx context.Context) error { return s.seen(ctx, node) }))
	}
	errs = append(errs, hooks.Delete(ctx, s.name, metav1.DeleteOptions{}))
	return fmt.Sprintf("asked by %d API servers on %s", len(s.Nodes), s.Nodes[0]), errors.Join(errs...)
}

// webhook leads creations of ConfigMaps in the namespace to the pod.
func (s *shop) webhook(ca []byte) *admissionv1.MutatingWebhookConfiguration {
	fail, none, path := admissionv1.Fail, admissionv1.SideEffectClassNone, "/mutate"
	return &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: s.name},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "hook.moot.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: s.name}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
			ClientConfig: admissionv1.WebhookClientConfig{
				CABundle: ca, Service: &admissionv1.ServiceReference{Name: "hook", Namespace: s.name, Path: &path},
			},
		}},
	}
}

// seen creates an object by way of a node, which the webhook has to have changed.
func (s *shop) seen(ctx context.Context, node string) error {
	c, err := s.Client(node)
	if err != nil {
		return err
	}
	m, err := c.CoreV1().ConfigMaps(s.name).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "hooked-"},
	}, metav1.CreateOptions{})
	if err == nil && m.Annotations["seen"] != "by-webhook" {
		err = fmt.Errorf("annotations %v", m.Annotations)
	}
	return err
}

// serverSecret is a certificate of a server and its key, as a Secret has them.
func serverSecret(name string) (cert, key []byte, err error) {
	own, err := selfSigned(name, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	encode := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return encode("CERTIFICATE", own.Certificate[0]), encode("PRIVATE KEY", private), nil
}
