package embedded

import (
	"path"
	"sync"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// A write is made stable when all that was to be copied to the volume's first mirror
// is so, and before that is in sync: what then makes it one has to have the write
// on it, as the others are made like it after a loss of power.
func TestPowerCutEndOfFill(t *testing.T) {
	x := newPCDirected(t)
	ms, err := x.mirrors(x.d)
	if err != nil {
		t.Fatal(err)
	}
	x.fs.Fail(func(op disktest.Op, name string) error {
		if op == disktest.OpSync && name == ms[0].File {
			return syscall.EIO
		}
		return nil
	})
	if err = x.put(0, 512); err == nil {
		err = x.clean()
	}
	var mu sync.Mutex
	syncs := 0
	x.fs.Fail(func(op disktest.Op, name string) error {
		if op != disktest.OpSync || path.Ext(name) != ".todo" || !mu.TryLock() { // what is done here calls as well
			return nil
		}
		defer mu.Unlock()
		syncs++
		if err := x.put(0, 8); err != nil {
			return err
		}
		return x.syncDevice(x.d, x.devs[x.d])
	})
	x.looking.Store(true)
	if err == nil {
		err = x.a.RepairVolume(x.ctx, driver.VolumeID(x.d.name))
	}
	if err == nil {
		err = x.a.WaitInSync(x.ctx, driver.VolumeID(x.d.name))
	}
	x.fs.Fail(nil)
	if err == nil && syncs < 2 {
		t.Errorf("the map of what is to be copied was synced %d times", syncs)
	}
	x.end(t, err)
}

// A map is lost, and then power, as soon as another has its name.
func TestPowerCutNewMap(t *testing.T) {
	x := newPCDirected(t)
	_, err := x.splitOff(nil)
	if err == nil {
		err = x.put(0, 8)
	}
	if err == nil { // a second epoch: the first one's map is not written any more
		_, err = x.splitOff(nil)
	}
	if err == nil {
		err = x.put(512, 8)
	}
	if err == nil {
		err = x.clean()
	}
	if err == nil {
		err = x.close()
	}
	if err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for _, lost := range x.fs.Files() {
		if ext := path.Ext(lost); ext != ".dirty" && ext != ".split" {
			continue
		}
		for nested := range int64(30) {
			for _, seed := range pcWorst {
				fs := x.fs.Cut(0)
				if err := fs.Remove(lost); err != nil {
					t.Fatal(err)
				}
				e := x.m.before()
				e.after()
				e.damaged = true
				if err := pcCheck(fs, e, seed, nested+1); err != nil {
					t.Fatalf("cut %d of the start without %s, at %d: %v", seed, lost, nested+1, err)
				}
				cuts++
			}
		}
	}
	if cuts == 0 {
		t.Error("there is no map")
	}
}
