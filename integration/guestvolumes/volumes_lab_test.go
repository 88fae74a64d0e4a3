//go:build lab

package guestvolumes

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/store/dmthin"
)

// keep is how images come into lun/testdata.
var keep = flag.String("keep", "", "directory to copy the disks to, after the cut, with the hashes that the kernel read")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGuestVolumes(t *testing.T) {
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			files := newDisks(t, s.disks, s.size<<20)
			want := s.make(t, files)
			c := probe(t, files)
			for name, sum := range want {
				if got := hashOf(t, c, name); got != sum {
					t.Errorf("sha256 of %s = %s, the guest's kernel read %s", name, got, sum)
				}
			}
			for name, why := range s.refused {
				v, err := c.Volume(name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if _, err := v.Open(); !strings.Contains(fmt.Sprint(err), why) || !strings.Contains(fmt.Sprint(err), name) {
					t.Errorf("%s: %v, want it refused with %q", name, err, why)
				}
			}
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) { s.check(t, files, want, w.recover) })
			}
		})
	}
}

func newDisks(t *testing.T, n int, size int64) []string {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for i := range n {
		files = append(files, filepath.Join(dir, fmt.Sprintf("disk%d", i+1)))
		if err := errors.Join(os.WriteFile(files[i], nil, 0o600), os.Truncate(files[i], size)); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func boot(t *testing.T, name string, modules, files []string) *lab.Machine {
	t.Helper()
	v := lab.VM{Name: name, Kind: lab.Proof, Memory: 384, Modules: modules}
	for _, f := range files {
		v.Disks = append(v.Disks, lab.Disk{File: f})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func run(t *testing.T, m *lab.Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out, err := m.Run(ctx, prelude+script)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// make has a guest make the volumes, and cuts its power. It returns the hashes
// by volume.
func (s *scene) make(t *testing.T, files []string) map[string]string {
	t.Helper()
	m := boot(t, "maker", s.modules, files)
	disks := "set -- " + strings.Join(m.Disks(), " ") + "\n"
	want := map[string]string{}
	for line := range strings.Lines(run(t, m, disks+s.script)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "HASH" {
			want[f[1]] = f[2]
		}
	}
	if len(want) == 0 {
		t.Fatal("the guest told no hashes")
	}
	run(t, m, "cat >/run/cut <<'END'\n"+prelude+s.cut+"\nEND\nsh /run/cut >/run/cut.out 2>&1 </dev/null &\n")
	run(t, m, `for i in $(seq 3000); do grep -q '^now' /run/cut.out && exit 0; sleep 0.02; done; cat /run/cut.out; exit 1`)
	m.Kill()
	if *keep != "" {
		for i, f := range files {
			b, err := os.ReadFile(f)
			if err == nil {
				err = os.WriteFile(filepath.Join(*keep, fmt.Sprintf("%s-%d.img", strings.ReplaceAll(s.name, " ", "-"), i+1)), b, 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		}
		t.Logf("hashes: %v", want)
	}
	return want
}

func probe(t *testing.T, files []string) *open.Contents {
	t.Helper()
	var sources []open.Source
	for _, f := range files {
		d, err := open.File(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		sources = append(sources, open.Source{Name: filepath.Base(f), Device: d})
	}
	c, err := open.Probe(t.Context(), sources...)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range c.Damage {
		t.Errorf("damage: %v", err)
	}
	return c
}

func hashOf(t *testing.T, c *open.Contents, name string) string {
	t.Helper()
	v, err := c.Volume(name)
	if err != nil {
		t.Error(err)
		return ""
	}
	d, err := v.Open()
	if err != nil {
		t.Error(err)
		return ""
	}
	return hash(t, d)
}

func hash(t *testing.T, d lun.Device) string {
	t.Helper()
	s, err := recovery.Sum(t.Context(), d, nil)
	if err != nil {
		t.Error(err)
	}
	return hex.EncodeToString(s[:])
}

// ways are how disks are recovered: each makes files that a guest can have.
var ways = []struct {
	name    string
	recover func(t *testing.T, files []string, v view) []string
}{{"view", asView}, {"in place", inPlace}}

// asView copies what the view shows.
func asView(t *testing.T, files []string, v view) []string {
	t.Helper()
	dir := t.TempDir()
	o, err := recovery.OpenView(t.Context(), probe(t, files), recovery.ViewOptions{Snapshots: []string{v.group + "/" + v.snapshot}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, d := range o.Clean {
		name := filepath.Join(dir, fmt.Sprintf("disk%d", i+1))
		if err := recovery.Copy(t.Context(), d, name, nil); err != nil {
			t.Fatal(err)
		}
		out = append(out, name)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// inPlace recovers copies of the disks.
func inPlace(t *testing.T, files []string, v view) []string {
	t.Helper()
	dir := t.TempDir()
	var out []string
	var sources []open.Source
	for i, name := range files {
		d, err := open.File(name)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, fmt.Sprintf("disk%d", i+1))
		if err := errors.Join(recovery.Copy(t.Context(), d, to, nil), d.Close()); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(to, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if d, err = open.FromFile(f); err != nil {
			t.Fatal(err)
		}
		out, sources = append(out, to), append(sources, open.Source{Name: to, Device: writable{d, f}})
	}
	c, err := open.Probe(t.Context(), sources...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := recovery.PrepareInPlace(t.Context(), c, recovery.InPlaceOptions{Snapshots: []string{v.group + "/" + v.snapshot}, DiscardOthers: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return out
}

type writable struct {
	*open.FileDevice
	f *os.File
}

func (w writable) WriteAt(p []byte, off int64) (int, error) { return w.f.WriteAt(p, off) }
func (w writable) Sync() error                              { return w.f.Sync() }

// check recovers the disks and has a guest use each of them, twice.
func (s *scene) check(t *testing.T, files []string, want map[string]string, recover func(*testing.T, []string, view) []string) {
	t.Helper()
	var all []string
	for _, v := range s.views {
		all = append(all, recover(t, files, v)...)
	}
	for round := range 2 {
		m := boot(t, fmt.Sprintf("proof%d", round+1), s.modules, all)
		for i, v := range s.views {
			disks := m.Disks()[i*s.disks : (i+1)*s.disks]
			out := run(t, m, v.script(i, disks, want[v.group+"/"+v.snapshot], round))
			t.Logf("%s as %s/%s, boot %d:\n%s", v.snapshot, v.group, v.volume, round+1, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := m.Shutdown(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range s.views {
		poolsAgree(t, probe(t, all[i*s.disks:(i+1)*s.disks]))
	}
}

// poolsAgree wants the thin pools of a recovered disk, as the second guest left
// them, to hold the devices that LVM has volumes for and no others: what was put
// back is deleted, and LVM and the kernel agree that it is.
func poolsAgree(t *testing.T, c *open.Contents) {
	t.Helper()
	for _, g := range c.Groups {
		for _, lv := range g.LVs {
			if lv.Role != "thin-pool" {
				continue
			}
			p, err := g.Pool(lv)
			if err != nil {
				t.Fatal(err)
			}
			want := map[uint64]string{}
			for _, lv := range g.LVs {
				if lv.Role == "thin" {
					th, _, err := g.Thin(lv)
					if err != nil {
						t.Fatal(err)
					}
					want[th.ID] = lv.Name
				}
			}
			err = p.Devices(func(d dmthin.Details) error {
				if want[d.ID] == "" {
					t.Errorf("the pool %s/%s still has device %d, which is no volume's", g.Name, lv.Name, d.ID)
				}
				return nil
			})
			if err != nil || p.Warning != nil {
				t.Errorf("pool %s/%s: %v, %v", g.Name, lv.Name, err, p.Warning)
			}
			t.Logf("pool %s/%s: transaction %d, %d volumes, %+v data blocks", g.Name, lv.Name, p.Transaction, len(want), p.Data)
		}
	}
}

// script is what the guest does with a view.
func (v view) script(n int, disks []string, sum string, round int) string {
	return fmt.Sprintf(`
export LVM_SYSTEM_DIR=/run/lvm%d
mkdir -p $LVM_SYSTEM_DIR /mnt/v
sed 's#global_filter = .*#global_filter = [ "a/^(%s)$/", "r/.*/" ]#' /etc/lvm/lvm.conf >$LVM_SYSTEM_DIR/lvm.conf
fail() { echo "FAILED: $*"; lvs -a -o+devices %[3]s; dmesg | tail -5; exit 1; }
vgchange -ay %[3]s || fail "%[3]s does not activate"
vgmknodes %[3]s >/dev/null || true # fails for a thin pool, and makes the nodes
for v in %[5]s; do lvs %[3]s/$v >/dev/null || fail "$v is gone"; done
for v in %[6]s; do ! lvs %[3]s/$v >/dev/null 2>&1 || fail "$v is still there"; done
t=$(lvs --noheadings -o segtype %[3]s/%[4]s | tr -d ' ')
[ "$t" = %[7]s ] || fail "it is $t"
dev=/dev/%[3]s/%[4]s
case %[9]d in
0)
	[ "$(sha256sum $dev | cut -d' ' -f1)" = %[8]s ] || fail "another content"
	e2fsck -fn $dev || fail "e2fsck"
	mount $dev /mnt/v
	echo written >/mnt/v/by-the-guest
	head -c 2000000 /dev/urandom >/mnt/v/random; sync
	sha256sum </mnt/v/random >/mnt/v/random.sum
	;;
1)
	e2fsck -fn $dev || fail "e2fsck after the second boot"
	mount $dev /mnt/v
	[ "$(cat /mnt/v/by-the-guest)" = written ] || fail "what was written is gone"
	[ "$(sha256sum </mnt/v/random)" = "$(cat /mnt/v/random.sum)" ] || fail "the random file changed"
	;;
esac
umount /mnt/v
if [ $t = thin ] && [ %[9]d = 1 ]; then
	# LVM's first change of the pool sends what the view left to be sent.
	lvcreate -s -kn -n extra %[3]s/%[4]s || fail "no snapshot can be made"
	lvremove -y %[3]s/extra || fail "no snapshot can be removed"
fi
lvs -a -o lv_name,segtype,lv_attr,origin,thin_id,data_percent,transaction_id %[3]s
vgchange -an %[3]s || fail "%[3]s does not deactivate"
`, n, strings.Join(disks, "|"), v.group, v.volume, strings.Join(v.kept, " "), strings.Join(v.gone, " "), v.type_, sum, round)
}
