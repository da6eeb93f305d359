package sched

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func service(name string, age int, ip string, ports ...int32) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name), CreationTimestamp: metav1.NewTime(at(float64(-age)))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: ip, ClusterIPs: []string{ip}},
	}
	for i, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + i), NodePort: p})
	}
	return s
}

func TestUsedTwice(t *testing.T) {
	udp := service("udp", 1, "10.0.0.9", 30001)
	udp.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	both := service("both", 1, "10.0.0.8", 30100, 30100) // one number for two protocols
	both.Spec.Ports[1].Protocol = corev1.ProtocolUDP
	tests := map[string]struct {
		services []*corev1.Service
		want     string
	}{
		"none":             {[]*corev1.Service{service("a", 2, "10.0.0.1", 30000), service("b", 1, "10.0.0.2", 30001)}, "[]"},
		"headless":         {[]*corev1.Service{service("a", 2, corev1.ClusterIPNone), service("b", 1, corev1.ClusterIPNone)}, "[]"},
		"address, younger": {[]*corev1.Service{service("young", 1, "10.0.0.1"), service("old", 2, "10.0.0.1")}, "[young true map[]]"},
		"same age, by UID": {[]*corev1.Service{service("b", 1, "10.0.0.1"), service("a", 1, "10.0.0.1")}, "[b true map[]]"},
		"node port":        {[]*corev1.Service{service("old", 3, "10.0.0.1", 30000), service("other", 2, "10.0.0.2", 30001), service("young", 1, "10.0.0.3", 30000)}, "[young false map[30000:30002]]"},
		"three of one":     {[]*corev1.Service{service("a", 3, "10.0.0.1", 30000), service("b", 2, "10.0.0.2", 30000), service("c", 1, "10.0.0.3", 30000)}, "[b false map[30000:30001] c false map[30000:30002]]"},
		"other protocol":   {[]*corev1.Service{service("a", 2, "10.0.0.1", 30001), udp}, "[]"},
		"one service":      {[]*corev1.Service{both}, "[]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, x := range usedTwice(test.services) {
				got = append(got, fmt.Sprint(x.service.Name, " ", x.ip, " ", x.ports))
			}
			if fmt.Sprint(got) != test.want {
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}

func TestMoveThatWasCutShortIsFinished(t *testing.T) {
	old, young := service("old", 2, "10.0.0.1"), service("young", 1, "10.0.0.1", 30000)
	young.Spec.Selector = map[string]string{"app": "young"}
	client := fake.NewClientset(old, young)
	updates := 0
	client.PrependReactor("update", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		updates++ // who else follows the Service writes it as soon as it has changed
		return updates == 2 || updates == 3, nil, apierrors.NewConflict(corev1.Resource("services"), "young", nil)
	})
	u := unique{client: client, log: DefaultConfig().Log}
	list := func() (all []*corev1.Service) {
		found, err := client.CoreV1().Services("ns").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range found.Items {
			all = append(all, &found.Items[i])
		}
		return all
	}
	if u.repair(t.Context(), list()) {
		t.Error("repaired, though every write met another")
	}
	if !u.repair(t.Context(), list()) {
		t.Error("not finished")
	}
	got, err := client.CoreV1().Services("ns").Get(t.Context(), "young", metav1.GetOptions{})
	if err != nil || got.Spec.Type != corev1.ServiceTypeNodePort || got.Spec.ExternalName != "" || got.Spec.Selector["app"] != "young" ||
		got.Spec.Ports[0].NodePort != 30000 || len(got.Annotations) > 0 {
		t.Errorf("it is %+v, %v", got, err)
	}
}

func TestMovedServiceHasNoAddressForAMoment(t *testing.T) {
	old, young := service("old", 2, "10.0.0.1", 30000), service("young", 1, "10.0.0.1", 30000)
	client := fake.NewClientset(old, young)
	u := unique{client: client, log: DefaultConfig().Log}
	if !u.repair(t.Context(), []*corev1.Service{young, old}) {
		t.Fatal("not repaired")
	}
	var steps []string
	for _, a := range client.Actions() {
		steps = append(steps, a.GetVerb()+" "+a.GetResource().Resource)
	}
	if fmt.Sprint(steps) != "[update services update services create events]" {
		t.Errorf("steps %v", steps)
	}
	got, err := client.CoreV1().Services("ns").Get(t.Context(), "young", metav1.GetOptions{})
	if err != nil || got.Spec.Type != corev1.ServiceTypeNodePort || got.Spec.ClusterIP != "" || got.Spec.Ports[0].NodePort != 30001 || got.Spec.ExternalName != "" || len(got.Annotations) > 0 {
		t.Errorf("it is %+v, %v", got, err)
	}
	if young.Spec.ClusterIP != "10.0.0.1" || young.Spec.Ports[0].NodePort != 30000 {
		t.Error("the informer's object was changed")
	}
}
