//go:build lab

package targets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

const (
	lioPort            = 3260
	lioIQN  iscsi.Name = "iqn.2016-04.org.example:lio"
	closed  iscsi.Name = "iqn.2016-04.org.example:closed"
	host    iscsi.Name = "iqn.2016-04.org.example:host"
	lunSize            = 64 << 20
)

// lio is a VM whose kernel is the target. Target lioIQN is open to all with LUN
// 0, target closed wants CHAP both ways.
type lio struct {
	*testing.T
	ctx context.Context
	vm  *lab.Machine
}

func newLIO(t *testing.T) *lio {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	vm, err := lab.Boot(ctx, lab.VM{
		Name: "lio", Kind: lab.Proof, Forward: []int{lioPort},
		Modules: []string{"configfs", "target_core_mod", "target_core_file", "iscsi_target_mod"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := vm.Run(context.Background(), "dmesg | tail -n 40")
			t.Logf("the target's last words:\n%s", out.Stdout)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lio{t, ctx, vm}
	t.Logf("PEER LIO of linux %s", strings.TrimSpace(l.run("uname -r")))
	l.run(fmt.Sprintf(`set -e
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/target
mkdir -p core/fileio_0
for i in 1 2; do
	d=core/fileio_0/disk$i
	mkdir $d
	truncate -s %[1]d /run/disk$i
	echo fd_dev_name=/run/disk$i,fd_dev_size=%[1]d,fd_buffered_io=1 >$d/control
	echo serial-$i >$d/wwn/vpd_unit_serial
	echo 1 >$d/enable
	echo 1 >$d/attrib/emulate_tpu
	echo 1 >$d/attrib/emulate_tpws
done
mkdir -p iscsi/%[2]s/tpgt_1/np/0.0.0.0:%[4]d iscsi/%[2]s/tpgt_1/lun/lun_0
ln -s $PWD/core/fileio_0/disk1 iscsi/%[2]s/tpgt_1/lun/lun_0/backing
a=iscsi/%[2]s/tpgt_1/attrib
echo 0 >$a/authentication; echo 1 >$a/generate_node_acls; echo 0 >$a/demo_mode_write_protect; echo 1 >$a/cache_dynamic_acls
echo 1 >iscsi/%[2]s/tpgt_1/enable

mkdir -p iscsi/%[3]s/tpgt_1/np/0.0.0.0:%[4]d iscsi/%[3]s/tpgt_1/lun/lun_0
ln -s $PWD/core/fileio_0/disk2 iscsi/%[3]s/tpgt_1/lun/lun_0/backing
acl=iscsi/%[3]s/tpgt_1/acls/%[5]s
mkdir -p $acl/lun_0
ln -s $PWD/iscsi/%[3]s/tpgt_1/lun/lun_0 $acl/lun_0/mapped
echo 1 >iscsi/%[3]s/tpgt_1/attrib/authentication
printf alice >$acl/auth/userid; printf right-secret-1 >$acl/auth/password
printf disk >$acl/auth/userid_mutual; printf right-secret-2 >$acl/auth/password_mutual
echo 1 >iscsi/%[3]s/tpgt_1/enable`, lunSize, lioIQN, closed, lioPort, host))
	return l
}

func (l *lio) run(script string) string {
	l.Helper()
	out, err := l.vm.Run(l.ctx, script)
	if err != nil {
		l.Fatalf("%v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

func (l *lio) options(target iscsi.Name) initiator.Options {
	return initiator.Options{
		Portals: []string{l.vm.Addr(lioPort)}, Target: target, Initiator: host,
		Timeout: time.Minute, Recovery: 2 * time.Minute,
	}
}

func (l *lio) open(o initiator.Options) *initiator.Disk {
	l.Helper()
	d, err := initiator.Open(l.ctx, o)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { d.Close() })
	return d
}

func (l *lio) same(d lun.Device, off int64, want []byte) {
	l.Helper()
	p := make([]byte, len(want))
	if _, err := d.ReadAt(p, off); err != nil {
		l.Fatal(err)
	}
	if !bytes.Equal(p, want) {
		l.Fatalf("%d bytes at %d are others than were written", len(p), off)
	}
}

func (l *lio) write(d lun.Device, off int64, p []byte) {
	l.Helper()
	if _, err := d.WriteAt(p, off); err != nil {
		l.Fatal(err)
	}
}

func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// cutter makes connections that break when the target has said so many bytes.
type cutter struct{ left atomic.Int64 }

type cutConn struct {
	net.Conn
	c *cutter
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return cutConn{nc, c}, nil
}

func (c cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if left := c.c.left.Add(-int64(n)); left < 0 && left+int64(n) >= 0 {
		c.Close()
		return max(0, n+int(left)), net.ErrClosed
	}
	return n, err
}

// TestLIO is our initiator on the Linux kernel's target: data with and without
// digests, CHAP both ways, cut connections, a LUN taken away and exchanged, the
// target taken down and up.
func TestLIO(t *testing.T) {
	l := newLIO(t)
	t.Run("data", func(*testing.T) { l.data() })
	t.Run("CHAP", func(t *testing.T) { l.chap(t) })
	t.Run("cuts", func(t *testing.T) { l.cuts(t) })
	t.Run("exchange", func(t *testing.T) { l.exchange(t) })
}

func (l *lio) data() {
	for _, digest := range []initiator.Digest{initiator.DigestOnDemand, initiator.DigestRequired} {
		o := l.options(lioIQN)
		o.HeaderDigest, o.DataDigest = digest, digest
		d := l.open(o)
		l.Logf("%s is %s, %s", d, d.Product(), d.ID())
		if d.Size() != lunSize || !strings.Contains(d.ID(), "serial-1") {
			l.Fatalf("%d bytes, %s", d.Size(), d.ID())
		}
		p := noise(5<<20+512, uint64(digest))
		l.write(d, 1<<20, p)
		if err := d.Sync(); err != nil {
			l.Error(err)
		}
		l.same(d, 1<<20, p)
		l.same(d, 1<<20+77, p[77:9999])
		if err := d.Trim(2<<20, 1<<20); err != nil {
			l.Error(err)
		}
		if err := d.WriteZeroes(4<<20, 8192); err != nil {
			l.Error(err)
		}
		clear(p[1<<20 : 2<<20])
		clear(p[3<<20 : 3<<20+8192])
		l.same(d, 1<<20, p)
		sum := strings.Fields(l.run("dd if=/run/disk1 bs=1M skip=2 count=1 2>/dev/null | tr -d '\\0' | wc -c"))
		if sum[0] != "0" {
			l.Errorf("%s bytes are there after they were trimmed", sum[0])
		}
		var n int64
		if err := d.Extents(0, d.Size(), func(e lun.Extent) error { n += e.Len; return nil }); err != nil || n != d.Size() {
			l.Errorf("extents of %d bytes: %v", n, err)
		}
	}
	if got, err := initiator.Discover(l.ctx, l.options("")); err != nil || len(got) != 2 {
		l.Errorf("%+v %v", got, err)
	}
	if luns, err := initiator.LUNs(l.ctx, l.options(lioIQN)); err != nil || fmt.Sprint(luns) != "[0]" {
		l.Errorf("LUNs %v: %v", luns, err)
	}
}

func (l *lio) chap(t *testing.T) {
	right := mask.Credentials{User: "alice", Secret: []byte("right-secret-1"), MutualUser: "disk", MutualSecret: []byte("right-secret-2")}
	wrong, wrongTarget := right, right
	wrong.Secret = []byte("wrong-secret-1")
	wrongTarget.MutualSecret = []byte("wrong-secret-2")
	for _, c := range []struct {
		name string
		cred *mask.Credentials
		want error
	}{{"right", &right, nil}, {"wrong secret", &wrong, initiator.ErrAuth}, {"wrong target", &wrongTarget, initiator.ErrAuth}, {"none", nil, errAny}} {
		o := l.options(closed)
		o.CHAP = c.cred
		d, err := initiator.Open(l.ctx, o)
		if !errors.Is(err, c.want) && (c.want != errAny || err == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err == nil {
			l.write(d, 0, noise(4096, 1))
			d.Close()
		}
	}
}

// errAny is for what LIO says in its own way: it hangs up.
var errAny = errors.New("any")

// cuts has connections break in the middle of reads and writes.
func (l *lio) cuts(t *testing.T) {
	c := &cutter{}
	c.left.Store(1 << 40)
	o := l.options(lioIQN)
	o.Dial = c.dial
	d := l.open(o)
	var over atomic.Bool
	var done atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := uint64(0); !over.Load(); k++ {
				p := noise(64<<10, k)
				q := make([]byte, len(p))
				at := int64(i)<<20 + 8<<20
				if _, err := d.WriteAt(p, at); err != nil {
					t.Error(err)
					return
				}
				if _, err := d.ReadAt(q, at); err != nil || !bytes.Equal(p, q) {
					t.Errorf("%v, or other bytes", err)
					return
				}
				done.Add(1)
			}
		})
	}
	for i := range 6 {
		before := done.Load()
		c.left.Store(int64(i) * 50000)
		for end := time.Now().Add(3 * time.Minute); done.Load() < before+20 && !t.Failed(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Error("it does not go on")
			}
		}
	}
	over.Store(true)
	wg.Wait()
	t.Logf("FIGURE requests around 6 cuts: %d", 2*done.Load())
}

// exchange takes the LUN away, puts another in its place, and the right one back;
// then the target goes down and up.
func (l *lio) exchange(t *testing.T) {
	o := l.options(lioIQN)
	o.NopInterval = time.Second
	o.Timeout = 10 * time.Second
	d := l.open(o)
	p := noise(1<<20, 9)
	l.write(d, 0, p)
	tpg := "cd /sys/kernel/config/target; tpg=iscsi/" + string(lioIQN) + "/tpgt_1\nset -e\n"
	take := "rm $tpg/lun/lun_0/backing; rmdir $tpg/lun/lun_0\n"
	put := "mkdir $tpg/lun/lun_0; ln -s $PWD/core/fileio_0/disk%d $tpg/lun/lun_0/backing\n"
	l.run(tpg + take)
	// In the place of a LUN 0 that isn't there LIO puts one of its own, without a
	// word: it is found out when the identity is looked at again.
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.ReadAt(make([]byte, 512), 0)
		if errors.Is(err, initiator.ErrNoLUN) {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("taken away: %v", err)
		}
	}
	before := l.run("sha256sum /run/disk2")
	l.run(tpg + fmt.Sprintf(put, 2))
	if _, err := d.WriteAt(p, 0); !errors.Is(err, initiator.ErrIdentity) {
		t.Errorf("exchanged: %v", err)
	}
	if l.run("sha256sum /run/disk2") != before {
		t.Error("the wrong LUN was written to")
	}
	l.run(tpg + take + fmt.Sprintf(put, 1))
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.ReadAt(make([]byte, 512), 0)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	l.same(d, 0, p)

	l.run(tpg + "echo 0 >$tpg/enable")
	read := make(chan error)
	go func() {
		q := make([]byte, len(p))
		_, err := d.ReadAt(q, 0)
		if err == nil && !bytes.Equal(p, q) {
			err = errors.New("other bytes")
		}
		read <- err
	}()
	l.run(tpg + "sleep 1; echo 1 >$tpg/enable")
	if err := <-read; err != nil {
		t.Errorf("down and up: %v", err)
	}
}
