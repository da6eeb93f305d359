package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// checkStateFiles looks for state files of the kubelet that are no JSON: it
// would end the process over each of them, at every start.
func checkStateFiles(rootDir string) []Problem {
	var found []Problem
	for _, name := range []string{
		"cpu_manager_state", "memory_manager_state", "dra_manager_state",
		"allocated_pods_state", "actuated_pods_state",
	} {
		path := filepath.Join(rootDir, name)
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && json.Valid(raw) {
			continue
		}
		why := "it is damaged"
		if err != nil {
			why = err.Error()
		}
		found = append(found, Problem{
			What: fmt.Sprintf("kubelet state file %s cannot be used (%s)", path, why),
			Fix:  "remove it: pods keep running, CPU and memory pinning is decided anew", Fatal: true,
		})
	}
	return found
}
