package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// serveTLS runs one of two servers that the Kubernetes API calls, with the
// certificate and key from a mounted Secret of type kubernetes.io/tls:
//
// webhook refuses, at /validate, every object with the label forbidden=true,
// and adds, at /mutate, the annotation seen=by-webhook.
//
// api serves the group try.moot.example in version v1 with one resource,
// greetings, of which there is always one.
func serveTLS(kind string, args []string) error {
	flags := flag.NewFlagSet("web "+kind, flag.ExitOnError)
	addr := flags.String("addr", ":8443", "where to listen")
	dir := flags.String("certs", "/certs", "directory with tls.crt and tls.key")
	if err := flags.Parse(args); err != nil {
		return err
	}
	mux := http.NewServeMux()
	if kind == "webhook" {
		mux.HandleFunc("POST /validate", review(validate))
		mux.HandleFunc("POST /mutate", review(mutate))
	} else {
		serveGroup(mux)
	}
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	srv := &http.Server{Addr: *addr, Handler: mux, ReadHeaderTimeout: 30 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServeTLS(*dir+"/tls.crt", *dir+"/tls.key") }()
	fmt.Printf("web: %s on %s\n", kind, *addr)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		done, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return srv.Shutdown(done)
	}
}

// object is of any JSON type.
type object = map[string]any

// admission is the part of admission.k8s.io/v1 AdmissionReview that is
// needed here.
type admission struct {
	Request struct {
		UID    string `json:"uid"`
		Object struct {
			Metadata struct {
				Name        string            `json:"name"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"object"`
	} `json:"request"`
}

func review(decide func(admission) object) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var a admission
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<20)).Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		response := decide(a)
		response["uid"] = a.Request.UID
		fmt.Printf("web: review of %q: %v\n", a.Request.Object.Metadata.Name, response["allowed"])
		writeJSON(w, object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
	}
}

func validate(a admission) object {
	if a.Request.Object.Metadata.Labels["forbidden"] == "true" {
		return object{"allowed": false, "status": object{"message": "the label says it is forbidden"}}
	}
	return object{"allowed": true}
}

func mutate(a admission) object {
	patch := []object{{"op": "add", "path": "/metadata/annotations/seen", "value": "by-webhook"}}
	if a.Request.Object.Metadata.Annotations == nil {
		patch = []object{{"op": "add", "path": "/metadata/annotations", "value": object{"seen": "by-webhook"}}}
	}
	b, err := json.Marshal(patch)
	if err != nil {
		return object{"allowed": false, "status": object{"message": err.Error()}}
	}
	return object{"allowed": true, "patchType": "JSONPatch", "patch": b}
}

func serveGroup(mux *http.ServeMux) {
	const group, version = "try.moot.example", "try.moot.example/v1"
	served := object{"groupVersion": version, "version": "v1"}
	greeting := object{
		"apiVersion": version, "kind": "Greeting",
		"metadata": object{"name": "hello", "namespace": "default", "creationTimestamp": nil},
		"text":     "hello from an aggregated API",
	}
	answer := func(path string, body object) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, body) })
	}
	answer("/apis", object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{{
		"name": group, "versions": []object{served}, "preferredVersion": served,
	}}})
	answer("/apis/"+group, object{
		"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": []object{served}, "preferredVersion": served,
	})
	answer("/apis/"+version, object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": []object{{
		"name": "greetings", "singularName": "greeting", "namespaced": true, "kind": "Greeting", "verbs": []string{"get", "list"},
	}}})
	answer("/apis/"+version+"/namespaces/default/greetings/hello", greeting)
	list := object{"apiVersion": version, "kind": "GreetingList", "metadata": object{"resourceVersion": "1"}, "items": []object{greeting}}
	answer("/apis/"+version+"/namespaces/default/greetings", list)
	answer("/apis/"+version+"/greetings", list)
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(body); err != nil {
		fmt.Println("web: answer:", err)
	}
}
