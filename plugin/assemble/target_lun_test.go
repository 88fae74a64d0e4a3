package assemble

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHostInitiator(t *testing.T) {
	file := filepath.Join(t.TempDir(), "initiatorname.iscsi")
	ours, err := hostInitiator(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := hostInitiator(file); err != nil || again != ours {
		t.Errorf("%s, then %s (%v)", ours, again, err)
	}
	if err := os.WriteFile(file, []byte("## no\n#InitiatorName=iqn.x:no\nInitiatorName=iqn.1993-08.org.debian:01:AB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := hostInitiator(file); err != nil || got != "iqn.1993-08.org.debian:01:ab" {
		t.Errorf("%s %v", got, err)
	}
}
