package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// TestHideArgument runs itself with a secret, as only the arguments that the
// kernel gave may be written to.
func TestHideArgument(t *testing.T) {
	const secret, env = "0a1b2c3d4e.secret", "MOOT_TEST_HIDE"
	if os.Getenv(env) != "" {
		if kept := hideArgument(os.Args, os.Args[len(os.Args)-1][len("--token="):]); kept != secret {
			t.Errorf("kept %q", kept)
		}
		shown, err := os.ReadFile("/proc/self/cmdline")
		if err != nil || bytes.Contains(shown, []byte(secret)) || !bytes.Contains(shown, []byte("--token=xxx")) {
			t.Errorf("the process list has %q, %v", shown, err)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHideArgument$", "--", "--token="+secret)
	cmd.Env = append(os.Environ(), env+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
