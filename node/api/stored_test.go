package api_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/mootkube/moot/gossip/store"
)

// stored returns all values below prefix by key.
func (p *plane) stored(t *testing.T, prefix string) map[string][]byte {
	t.Helper()
	end := []byte(prefix)
	end[len(end)-1]++
	got, err := p.db.Range(t.Context(), store.RangeRequest{Key: []byte(prefix), End: end})
	check(t, err)
	values := map[string][]byte{}
	for _, kv := range got.KVs {
		values[string(kv.Key)] = kv.Value
	}
	return values
}

// checkStoredJSON holds every value that the API server has stored to what the
// merge needs: JSON that says what it is.
func checkStoredJSON(t *testing.T, p *plane) {
	t.Helper()
	_, err := p.client.EventsV1().Events("default").Create(t.Context(), &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "stored"}, EventTime: metav1.NewMicroTime(time.Now()),
		ReportingController: "test", ReportingInstance: "test", Action: "Storing", Reason: "Test", Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{Kind: "Namespace", Name: "default", Namespace: "default"},
	}, metav1.CreateOptions{})
	check(t, err)
	kinds := map[string]int{}
	for key, value := range p.stored(t, "/registry/") {
		var object struct {
			APIVersion, Kind string
			Metadata         struct{ UID string }
		}
		if err := json.Unmarshal(value, &object); err != nil || object.APIVersion == "" || object.Kind == "" {
			t.Errorf("%s is stored as %.60q: %v", key, value, err)
			continue
		}
		if object.Metadata.UID == "" && !strings.HasPrefix(key, "/registry/ranges/") {
			t.Errorf("%s is stored without a UID", key)
		}
		kinds[object.APIVersion+" "+object.Kind]++
	}
	for _, want := range []string{
		"v1 Event", "v1 Pod", "v1 Namespace", "v1 Node", "v1 Service", "v1 Endpoints", "v1 ConfigMap", "v1 ServiceAccount",
		"v1 RangeAllocation", "apps/v1 Deployment", "apps/v1 ReplicaSet", "discovery.k8s.io/v1 EndpointSlice",
		"coordination.k8s.io/v1 Lease", "rbac.authorization.k8s.io/v1 ClusterRole", "networking.k8s.io/v1 ServiceCIDR",
		"networking.k8s.io/v1 IPAddress", "scheduling.k8s.io/v1 PriorityClass", "flowcontrol.apiserver.k8s.io/v1 FlowSchema",
		"apiextensions.k8s.io/v1 CustomResourceDefinition", "apiregistration.k8s.io/v1 APIService", "example.org/v1 Boat",
	} {
		if kinds[want] == 0 {
			t.Errorf("no %s is stored; there are %v", want, kinds)
		}
	}
}

// checkProtobufIsRead stores an object as an older version of the program did
// and changes it through the API: from then on it is JSON.
func checkProtobufIsRead(t *testing.T, p *plane) {
	t.Helper()
	old := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "old", Namespace: "default", UID: "00000000-0000-4000-8000-000000000001"},
		Data:       map[string]string{"a": "1"},
	}
	const key = "/registry/configmaps/default/old"
	codec := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	encoded, err := runtime.Encode(scheme.Codecs.EncoderForVersion(codec, corev1.SchemeGroupVersion), old)
	check(t, err)
	_, err = p.db.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: []byte(key), Value: encoded}}})
	check(t, err)
	read, err := p.client.CoreV1().ConfigMaps("default").Get(t.Context(), "old", metav1.GetOptions{})
	check(t, err)
	if read.UID != old.UID || read.Data["a"] != "1" {
		t.Errorf("stored as protobuf, read as %v", read)
	}
	read.Data["a"] = "2"
	_, err = p.client.CoreV1().ConfigMaps("default").Update(t.Context(), read, metav1.UpdateOptions{})
	check(t, err)
	if value := p.stored(t, key)[key]; !json.Valid(value) {
		t.Errorf("changed, it is stored as %q", value)
	}
}

// checkSharedUIDs holds all that is stored to the rule of who gets a UID that
// every node would give.
func checkSharedUIDs(t *testing.T, p *plane) {
	t.Helper()
	const shared, own = '8', '4' // versions of UUIDs
	for key, value := range p.stored(t, "/registry/") {
		var object struct {
			Kind     string
			Metadata struct{ UID, Name string }
		}
		check(t, json.Unmarshal(value, &object))
		want := byte(own)
		switch object.Kind {
		case "RangeAllocation":
			continue // has none
		case "Namespace", "ReplicaSet", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "FlowSchema", "PriorityClass",
			"PriorityLevelConfiguration", "ServiceCIDR", "IPAddress", "APIService":
			want = shared
		case "Service", "Endpoints", "EndpointSlice":
			if name := object.Metadata.Name; name == "kubernetes" || strings.HasPrefix(name, "kubernetes-ipv4-") {
				want = shared
			}
		case "ConfigMap":
			if object.Metadata.Name != "old" && !strings.HasPrefix(object.Metadata.Name, "cluster-info") {
				want = shared
			}
		case "ServiceAccount":
			if object.Metadata.Name == "default" {
				want = shared
			}
		}
		if len(object.Metadata.UID) != 36 || object.Metadata.UID[14] != want {
			t.Errorf("%s has the UID %s, want version %c", key, object.Metadata.UID, want)
		}
	}
}

// checkMadeAgain holds an object with a shared UID to get another when it is
// deleted and made again.
func checkMadeAgain(t *testing.T, p *plane) {
	t.Helper()
	const address = "10.43.77.77"
	seen := map[string]bool{}
	for range 3 {
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "again"},
			Spec:       corev1.ServiceSpec{ClusterIP: address, Ports: []corev1.ServicePort{{Port: 80}}},
		}
		_, err := p.client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{})
		check(t, err)
		held, err := p.client.NetworkingV1().IPAddresses().Get(t.Context(), address, metav1.GetOptions{})
		check(t, err)
		if uid := string(held.UID); seen[uid] || uid[14] != '8' {
			t.Errorf("the address, made again, has the UID %s", uid)
		}
		seen[string(held.UID)] = true
		check(t, p.client.CoreV1().Services("default").Delete(t.Context(), "again", metav1.DeleteOptions{}))
		await(t, "the address to be free", func(ctx context.Context) bool {
			_, err := p.client.NetworkingV1().IPAddresses().Get(ctx, address, metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
}
