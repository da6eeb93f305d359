package dns

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const fieldManager = "moot"

// Ensure makes the cluster have objects, as [Objects] returns them. What the
// daemon decides is put back where it was changed; the ConfigMap is the user's
// and only made when missing. client needs the rights of an administrator.
func Ensure(ctx context.Context, client kubernetes.Interface, objects []runtime.Object) error {
	for _, obj := range objects {
		if err := ensure(ctx, client, obj); err != nil {
			return err
		}
	}
	return nil
}

func ensure(ctx context.Context, client kubernetes.Interface, obj runtime.Object) error {
	body, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode %T: %w", obj, err)
	}
	force := true
	opts := metav1.PatchOptions{FieldManager: fieldManager, Force: &force}
	var name string
	switch o := obj.(type) {
	case *rbacv1.ClusterRole:
		name = o.Name
		_, err = client.RbacV1().ClusterRoles().Patch(ctx, name, types.ApplyPatchType, body, opts)
	case *rbacv1.ClusterRoleBinding:
		name = o.Name
		_, err = client.RbacV1().ClusterRoleBindings().Patch(ctx, name, types.ApplyPatchType, body, opts)
	case *rbacv1.Role:
		name = o.Name
		_, err = client.RbacV1().Roles(o.Namespace).Patch(ctx, name, types.ApplyPatchType, body, opts)
	case *rbacv1.RoleBinding:
		name = o.Name
		_, err = client.RbacV1().RoleBindings(o.Namespace).Patch(ctx, name, types.ApplyPatchType, body, opts)
	case *corev1.Service:
		name = o.Name
		_, err = client.CoreV1().Services(o.Namespace).Patch(ctx, name, types.ApplyPatchType, body, opts)
	case *corev1.ConfigMap:
		name = o.Name
		_, err = client.CoreV1().ConfigMaps(o.Namespace).Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	default:
		return fmt.Errorf("apply %T: not a kind that DNS needs", obj)
	}
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", obj.GetObjectKind().GroupVersionKind().Kind, name, err)
	}
	return nil
}
