package dataplane

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
)

// reservations keeps the persistent reservations of each LUN in a file that is
// named for its identity.
type reservations struct{ dir string }

var _ scsi.Store = reservations{}

// maxReservations is more than the state of one LUN can take, in bytes.
const maxReservations = 1 << 20

func (s reservations) path(id lun.Identity) string { return filepath.Join(s.dir, id.String()) }

// Load implements scsi.Store.
func (s reservations) Load(id lun.Identity) ([]byte, error) {
	f, err := os.Open(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxReservations))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	case len(b) == 0:
		// Nothing is ever saved so: this is damage, not "no reservations".
		return nil, fmt.Errorf("%s is empty", f.Name())
	}
	return b, nil
}

// Save implements scsi.Store.
func (s reservations) Save(id lun.Identity, state []byte) error {
	var err error
	if len(state) > 0 {
		err = replaceFile(s.path(id), state)
	} else if err = os.Remove(s.path(id)); err == nil {
		err = syncDir(s.dir)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("saving the reservations of LUN %s: %w", id, err)
	}
	return nil
}
