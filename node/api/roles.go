package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/klog/v2"

	"github.com/mootkube/moot/node/pki"
)

// grant is a cluster role and the group of client certificates that has it.
type grant struct {
	role  string
	group string
	rules []rbacv1.PolicyRule // nil: the role is upstream's
}

// grants is the least that the API server itself and the leader need; other
// parts of the daemon bring theirs along.
func grants() []grant {
	rule := func(group string, verbs []string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
	}
	return []grant{
		{role: "system:kubelet-api-admin", group: pki.GroupKubeletAPI},
		{role: "moot:leader", group: pki.GroupLeader, rules: []rbacv1.PolicyRule{
			rule("", []string{"get", "create", "update"}, "endpoints"),
			rule("discovery.k8s.io", []string{"list", "create", "update", "delete"}, "endpointslices"),
			// The addresses of Services.
			rule("", []string{"list", "watch", "update"}, "services"),
			rule("", []string{"create"}, "events"),
			rule("networking.k8s.io", []string{"list", "watch"}, "servicecidrs"),
			rule("networking.k8s.io", []string{"list", "watch", "create", "delete"}, "ipaddresses"),
			rule("events.k8s.io", []string{"create", "patch", "update"}, "events"),
			// What it does about nodes by what the membership says of them.
			rule("", []string{"list", "watch", "patch", "delete"}, "nodes", "pods"),
			rule("", []string{"patch"}, "nodes/status", "pods/status"),
			rule("coordination.k8s.io", []string{"create", "patch", "delete"}, "leases"),
		}},
	}
}

// ensureRoles is a start-up hook beside upstream's own RBAC bootstrap: it makes
// what is missing and keeps what an administrator added.
func ensureRoles(hook genericapiserver.PostStartHookContext) error {
	client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("ensure roles: %w", err)
	}
	var last error
	err = wait.PollUntilContextTimeout(hook, 50*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		last = reconcileRoles(client)
		return last == nil, nil
	})
	if err != nil && hook.Err() == nil {
		// An error would end the process; the node works without, and the
		// next start tries again.
		klog.FromContext(hook).Error(errors.Join(err, last), "Roles of the daemon's parts are incomplete")
	}
	return nil
}

func reconcileRoles(client kubernetes.Interface) error {
	for _, g := range grants() {
		labels := map[string]string{"app.kubernetes.io/managed-by": "moot"}
		if g.rules != nil {
			role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: g.role, Labels: labels}, Rules: g.rules}
			_, err := (&reconciliation.ReconcileRoleOptions{
				Role:    reconciliation.ClusterRoleRuleOwner{ClusterRole: role},
				Client:  reconciliation.ClusterRoleModifier{Client: client.RbacV1().ClusterRoles()},
				Confirm: true,
			}).Run()
			if err != nil {
				return fmt.Errorf("ensure cluster role %s: %w", g.role, err)
			}
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: g.group, Labels: labels},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: g.role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: g.group}},
		}
		_, err := (&reconciliation.ReconcileRoleBindingOptions{
			RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: binding},
			Client:      reconciliation.ClusterRoleBindingClientAdapter{Client: client.RbacV1().ClusterRoleBindings()},
			Confirm:     true,
		}).Run()
		if err != nil {
			return fmt.Errorf("bind cluster role %s: %w", g.role, err)
		}
	}
	return nil
}
