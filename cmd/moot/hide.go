package main

import (
	"strings"
	"unsafe"
)

// hideToken overwrites the values of --token in the arguments of this process,
// which everyone on the machine may read, and returns a copy of token. The
// arguments must be the process's own: the runtime lets their strings, and those
// that were parsed out of them, point to the very memory that the kernel shows.
// So nothing else is written to, whatever it has in common with a token.
func hideToken(args []string, token string) string {
	kept := strings.Clone(token)
	for i, arg := range args {
		value, isToken := strings.CutPrefix(arg, "--token=")
		if !isToken && (i == 0 || args[i-1] != "--token") {
			continue
		}
		shown := unsafe.Slice(unsafe.StringData(value), len(value))
		for i := range shown {
			shown[i] = 'x'
		}
	}
	return kept
}
