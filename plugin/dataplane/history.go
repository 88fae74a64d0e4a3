package dataplane

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/target"
)

// history keeps, in a file for each target, which initiators have been shown what
// under which LUN number.
type history struct{ dir string }

var _ target.History = history{}

// path is named for a digest: an iSCSI name may be longer than a file's.
func (h history) path(n iscsi.Name) string {
	sum := sha256.Sum256([]byte(n))
	return filepath.Join(h.dir, hex.EncodeToString(sum[:16])+".json")
}

// Load implements target.History.
func (h history) Load(n iscsi.Name) ([]byte, error) {
	b, err := os.ReadFile(h.path(n))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case len(b) == 0:
		// Nothing is ever saved so: this is damage, not a new target.
		return nil, fmt.Errorf("%s is empty", h.path(n))
	}
	return b, nil
}

// Save implements target.History.
func (h history) Save(n iscsi.Name, state []byte) error {
	return replaceFile(h.path(n), state)
}
