package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	watchtools "k8s.io/client-go/tools/watch"
)

// askWithin bounds a request that must not wait. Upstream waits 3 s for a state
// to come before it fails, and for ever for an event.
const askWithin = patience

// TestNodes runs clients against two nodes that replicate.
func TestNodes(t *testing.T) {
	nodes := startNodes(t)
	t.Run("foreign resource versions", func(t *testing.T) { checkForeign(t, nodes) })
	t.Run("ports", func(t *testing.T) { checkPorts(t, nodes) })
	t.Run("retry watcher", func(t *testing.T) { checkRetryWatcher(t, nodes) })
	t.Run("moving clients", func(t *testing.T) { checkMoving(t, nodes) })
}

// answer is what a raw request gets.
type answer struct {
	code   int
	status metav1.Status // of a failure
	names  int           // of a list
	token  string
	events []metav1.WatchEvent
}

// ask sends a request of any query to the things of a namespace. A watch is read
// up to its first error or bookmark.
func ask(t *testing.T, n *node, method, path string) answer {
	t.Helper()
	client, err := rest.HTTPClientFor(n.admin)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), askWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.admin.Host+path, nil)
	check(t, err)
	resp, err := client.Do(req)
	check(t, err)
	defer resp.Body.Close() //nolint:errcheck // read as far as it goes
	a := answer{code: resp.StatusCode}
	if strings.Contains(path, "watch") && a.code == http.StatusOK {
		a.readEvents(t, path, resp.Body)
		return a
	}
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if a.code != http.StatusOK {
		check(t, json.Unmarshal(body, &a.status))
		return a
	}
	var list corev1.ConfigMapList
	check(t, json.Unmarshal(body, &list))
	a.names, a.token = len(list.Items), list.Continue
	return a
}

func (a *answer) readEvents(t *testing.T, path string, body io.Reader) {
	t.Helper()
	decoder := json.NewDecoder(body)
	for {
		var event metav1.WatchEvent
		if err := decoder.Decode(&event); err != nil {
			t.Fatalf("watch %s: %v after %v", path, err, a.events)
		}
		a.events = append(a.events, event)
		switch watch.EventType(event.Type) {
		case watch.Error:
			check(t, json.Unmarshal(event.Object.Raw, &a.status))
			return
		case watch.Bookmark:
			return
		}
	}
}

// checkForeign asks the first node with what the second gave out, whose clock
// is ahead, and the other way around.
func checkForeign(t *testing.T, nodes []*node) {
	const things = 7
	const path = "/api/v1/namespaces/default/configmaps"
	for i := range things {
		_, err := nodes[1].client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("thing-", i), Labels: map[string]string{"test": "foreign"}},
		}, metav1.CreateOptions{})
		check(t, err)
	}
	for i, n := range nodes {
		other := nodes[1-i]
		list, err := other.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{LabelSelector: "test=foreign"})
		check(t, err)
		page, err := other.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{LabelSelector: "test=foreign", Limit: 3})
		check(t, err)
		// An own version that is yet to come: its state was lost.
		lost := fmt.Sprint(n.store.Revision() + 3600*100_000<<16)
		const label = "labelSelector=test%3Dforeign&"
		for _, rv := range []string{list.ResourceVersion, lost} {
			checkPlaces(t, n, path+"?"+label+"resourceVersion="+rv, path+"/thing-1?resourceVersion="+rv, things)
			got := ask(t, n, "GET", "/api/v1/watch/namespaces/default/configmaps?"+label+"resourceVersion="+rv)
			expectExpired(t, "legacy watch", got)
			got = ask(t, n, "GET", "/api/v1/events?watch=true&resourceVersion="+rv) // not from the cache
			expectExpired(t, "watch of events", got)
		}
		got := ask(t, n, "GET", path+"?"+label+"limit=3&continue="+page.Continue)
		if got.code != http.StatusGone || got.status.Reason != metav1.StatusReasonExpired || got.status.Continue == "" {
			t.Fatalf("continue: %+v", got)
		}
		if got = ask(t, n, "GET", path+"?"+label+"continue="+got.status.Continue); got.code != http.StatusOK || got.names != things-3 {
			t.Errorf("continue from the newest state: %+v", got)
		}
		if got = ask(t, n, "GET", path+"?"+label+"resourceVersion=nonsense"); got.code != http.StatusBadRequest && got.code != http.StatusUnprocessableEntity {
			t.Errorf("nonsense: %+v", got)
		}
		if got = ask(t, n, "DELETE", path+"?labelSelector=test%3Dnothing&resourceVersion="+list.ResourceVersion); got.code != http.StatusOK {
			t.Errorf("delete of a collection: %+v", got)
		}
		// In a body it is a conflict, guard or not.
		thing := list.Items[0].DeepCopy()
		thing.Data = map[string]string{"a": "b"}
		if _, err := n.client.CoreV1().ConfigMaps("default").Update(t.Context(), thing, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("update with a foreign resource version: %v", err)
		}
	}
}

func checkPlaces(t *testing.T, n *node, list, get string, things int) {
	t.Helper()
	if got := ask(t, n, "GET", get); got.code != http.StatusOK {
		t.Errorf("get: %+v", got)
	}
	for _, query := range []string{"", "&resourceVersionMatch=NotOlderThan", "&limit=100&resourceVersionMatch=NotOlderThan"} {
		if got := ask(t, n, "GET", list+query); got.code != http.StatusOK || got.names != things {
			t.Errorf("list%s: %+v", query, got)
		}
	}
	for _, query := range []string{"&resourceVersionMatch=Exact", "&limit=100"} {
		if got := ask(t, n, "GET", list+query); got.code != http.StatusGone || got.status.Reason != metav1.StatusReasonExpired {
			t.Errorf("list%s: %+v", query, got)
		}
	}
	expectExpired(t, "watch", ask(t, n, "GET", list+"&watch=true"))
	expectExpired(t, "watch without initial events", ask(t, n, "GET", list+"&watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan"))
	got := ask(t, n, "GET", list+"&watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan")
	if len(got.events) != things+1 || got.events[things].Type != string(watch.Bookmark) {
		t.Errorf("watch from the initial events: %+v", got)
	}
}

func expectExpired(t *testing.T, what string, got answer) {
	t.Helper()
	if len(got.events) != 1 || got.status.Code != http.StatusGone || got.status.Reason != metav1.StatusReasonExpired {
		t.Errorf("%s: %+v", what, got)
	}
}

// checkRetryWatcher moves the client that tries for ever on some errors: it must
// end, and say so to its user.
func checkRetryWatcher(t *testing.T, nodes []*node) {
	list, err := nodes[1].client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	check(t, err)
	watcher, err := watchtools.NewRetryWatcherWithContext(t.Context(), list.ResourceVersion, retryTarget{nodes[0]})
	check(t, err)
	defer watcher.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case event, ok := <-watcher.ResultChan():
			if ok && event.Type == watch.Error {
				if err := apierrors.FromObject(event.Object); !apierrors.IsResourceExpired(err) {
					t.Errorf("the watch ends with %v", err)
				}
				return
			}
			if !ok {
				t.Fatal(errors.New("the watch ends without a word"))
			}
		case <-late.C:
			t.Fatal("the watch goes on for ever")
		}
	}
}

type retryTarget struct{ *node }

func (r retryTarget) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return r.client.CoreV1().ConfigMaps("default").Watch(ctx, options)
}
