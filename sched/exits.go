package sched

import (
	"errors"
	"runtime"
	"strings"
	"sync/atomic"

	"k8s.io/klog/v2"
)

// errExit is the error of a term whose code asked to end the process.
var errExit = errors.New("upstream code asked to end the process")

// Exits catches upstream's calls to end the process. Where a program of its
// own may exit, when discovery fails for one, in the daemon only the term may
// end. Calls from outside controllers and scheduler go on to the process.
type Exits struct {
	next func(code int)
	end  atomic.Pointer[func(error)] // ends the current term
}

// CatchExits redirects klog's exit for the rest of the process's life; call it
// once, before anything upstream runs.
func CatchExits() *Exits {
	e := &Exits{next: klog.OsExit}
	klog.OsExit = e.exit
	return e
}

// exit runs on the goroutine that asked, and does not return.
func (e *Exits) exit(code int) {
	if !askedByTerm() {
		e.next(code)
		return
	}
	if end := e.end.Load(); end != nil {
		(*end)(errExit)
	}
	runtime.Goexit()
}

// askedByTerm looks for controllers or scheduler on the caller's stack.
func askedByTerm() bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		for _, root := range []string{
			"k8s.io/kubernetes/pkg/controller/", "k8s.io/kubernetes/pkg/scheduler",
			"k8s.io/kubernetes/cmd/kube-controller-manager/", "k8s.io/kubernetes/cmd/kube-scheduler/",
			"k8s.io/controller-manager/",
		} {
			if strings.HasPrefix(frame.Function, root) {
				return true
			}
		}
		if !more {
			return false
		}
	}
}
