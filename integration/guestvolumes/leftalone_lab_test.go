//go:build lab

package guestvolumes

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

var errStopped = errors.New("stopped here")

// stopping is a disk that takes so many writes.
type stopping struct {
	writable
	left *atomic.Int64
}

func (s stopping) WriteAt(p []byte, off int64) (int, error) {
	if s.left.Add(-1) < 0 {
		return 0, errStopped
	}
	return s.writable.WriteAt(p, off)
}

// TestLeftAlone stops a recovery in place in the middle and gives the disk to a
// guest as it is: its LVM shows the snapshot's content as the volume at once, and
// ends the merge by itself.
func TestLeftAlone(t *testing.T) {
	const sum = "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f" // lun/testdata/README.md
	path := luntest.File(t, "lvm-o1-thick-4k")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := open.FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	left := new(atomic.Int64)
	left.Store(250) // of some 540
	c, err := open.Probe(t.Context(), open.Source{Name: "o1", Device: stopping{writable{d, f}, left}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := recovery.PrepareInPlace(t.Context(), c, recovery.InPlaceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), nil); !errors.Is(err, errStopped) {
		t.Fatalf("a run that was to be stopped: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	m := boot(t, "alone", nil, []string{path})
	t.Log(run(t, m, `
export LVM_SYSTEM_DIR=/run/lvm1
mkdir -p $LVM_SYSTEM_DIR
sed 's#global_filter = .*#global_filter = [ "a|^`+m.Disks()[0]+`$|", "r|.*|" ]#' /etc/lvm/lvm.conf >$LVM_SYSTEM_DIR/lvm.conf
lvs -a -o lv_name,lv_attr,origin vgo1
command lvm vgchange -ay --poll n vgo1 </dev/null
vgmknodes vgo1 || true
dmsetup table
dmsetup table vgo1-root | grep snapshot-merge
[ "$(sha256sum /dev/vgo1/root | cut -d' ' -f1)" = `+sum+` ]
command lvm lvchange --poll y vgo1/root </dev/null
for i in $(seq 600); do
	command lvm lvs --noheadings -o lv_name,lv_attr -a vgo1 </dev/null >/run/lvs
	grep -q snap /run/lvs || break
	sleep 0.1
done
cat /run/lvs
! grep -q snap /run/lvs
dmsetup table vgo1-root | grep linear
[ "$(sha256sum /dev/vgo1/root | cut -d' ' -f1)" = `+sum+` ]
e2fsck -fn /dev/vgo1/root
vgchange -an vgo1
`))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if got := hashOf(t, probe(t, []string{path}), "vgo1/root"); got != sum {
		t.Errorf("afterwards the volume is %s", got)
	}
}
