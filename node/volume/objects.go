package volume

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/mootkube/moot/node/pki"
)

// roleBinding names the object that gives the provisioners their rights.
const roleBinding = "system:moot:volume"

// ClassName is the StorageClass that claims get when they name none.
const ClassName = "local-path"

const defaultClass = "storageclass.kubernetes.io/is-default-class"

// class is the StorageClass as it is made first. It is the user's from then on:
// to make another class the default, the annotation is taken off this one.
func class() *storagev1.StorageClass {
	reclaim := corev1.PersistentVolumeReclaimDelete
	binding := storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{defaultClass: "true"}},
		Provisioner:       Name,
		ReclaimPolicy:     &reclaim,
		VolumeBindingMode: &binding,
	}
}

// binding gives the provisioners of all nodes the rights that upstream has ready for provisioners.
func binding() *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: roleBinding},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: pki.GroupVolume}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:persistent-volume-provisioner"},
	}
}

// Ensure makes the cluster have what the provisioners need: their rights, and
// the StorageClass if it is missing. client needs the rights of an
// administrator.
func Ensure(ctx context.Context, client kubernetes.Interface) error {
	body, err := json.Marshal(binding())
	if err != nil {
		return fmt.Errorf("encode ClusterRoleBinding: %w", err)
	}
	force := true
	if _, err := client.RbacV1().ClusterRoleBindings().Patch(ctx, roleBinding, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: "moot", Force: &force}); err != nil {
		return fmt.Errorf("apply ClusterRoleBinding %s: %w", roleBinding, err)
	}
	_, err = client.StorageV1().StorageClasses().Create(ctx, class(), metav1.CreateOptions{FieldManager: "moot"})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create StorageClass %s: %w", ClassName, err)
	}
	return nil
}
