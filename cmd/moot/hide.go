package main

import (
	"strings"
	"unsafe"
)

// hideArgument overwrites a secret in the arguments of this process, which
// everyone on the machine may read, and returns a copy of it. The arguments
// must be the process's own: the runtime lets their strings point to the very
// memory that the kernel shows.
func hideArgument(args []string, secret string) string {
	kept := strings.Clone(secret)
	if kept == "" {
		return kept
	}
	for _, arg := range args {
		at := strings.Index(arg, kept)
		if at < 0 {
			continue
		}
		shown := unsafe.Slice(unsafe.StringData(arg), len(arg))[at : at+len(kept)]
		for i := range shown {
			shown[i] = 'x'
		}
	}
	return kept
}
