package attach

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestCheckRules(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	dirs := []string{first, second}
	if _, err := checkRules(dirs); !errors.Is(err, ErrRules) {
		t.Errorf("none there: %v", err)
	}
	path := filepath.Join(second, RulesName)
	if err := os.WriteFile(path, Rules, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := checkRules(dirs); got != path || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	// One that hides it, of another release.
	if err := os.WriteFile(filepath.Join(first, RulesName), Rules[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := checkRules(dirs); !errors.Is(err, ErrRules) {
		t.Errorf("%s, %v", got, err)
	}
}
