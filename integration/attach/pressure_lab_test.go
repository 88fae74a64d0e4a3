//go:build lab

package attach

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
)

// TestShortOfMemory: a host with next to no free memory writes much more than
// that to a writable device, through its page cache. The kernel can only clean
// pages by way of the helper, which must not wait for memory that takes clean
// pages.
func TestShortOfMemory(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir, exe := build(t)
	image := filepath.Join(dir, "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	vm, err := lab.Boot(ctx, lab.VM{Name: "tight", Kind: lab.Proof, CPUs: 2, Modules: []string{"nbd", "loop", "fuse"}, Disks: []lab.Disk{{File: image}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, method := range []string{"nbd", "fuse"} {
		out, err := vm.Run(ctx, fmt.Sprintf(`set -e
dev=$(%[1]s lun attach /dev/vda --writable --method %[2]s -o name)
mkdir -p /run/hog
mount -t tmpfs -o size=100%% hog /run/hog
free() { awk '/^MemAvailable:/ { print int($2/1024) }' /proc/meminfo; }
dd if=/dev/zero of=/run/hog/all bs=1M count=$(($(free) - 96)) 2>/dev/null
echo "$(free) MiB are left"
# A second time it is old pages that have to go.
for pass in 1 2; do
	fio --name=v --filename=$dev --size=480m --rw=write --bs=256k --ioengine=psync --end_fsync=1 --verify=crc32c --randseed=$pass --thread >/run/fio.log 2>&1 || { cat /run/fio.log; false; }
done
umount /run/hog
%[1]s lun detach $dev
! dmesg | grep -iE 'out of memory|hung task|blocked for more'`, exe, method))
		t.Logf("%s: %s", method, strings.TrimSpace(out.Stdout))
		if err != nil {
			t.Errorf("%s: %v: %s", method, err, out.Stderr)
		}
	}
}
