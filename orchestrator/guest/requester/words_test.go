package requester

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shells runs a test with each shell that may be /bin/sh in a guest and that
// this machine has. run runs a text after the script's own words, with W and D
// in an empty directory that it returns.
func shells(t *testing.T, test func(t *testing.T, run func(text string) (out, dir string))) {
	for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}} {
		path, err := exec.LookPath(shell[0])
		if err != nil {
			t.Logf("%s is not installed", shell[0])
			continue
		}
		t.Run(shell[0], func(t *testing.T) {
			test(t, func(text string) (string, string) {
				t.Helper()
				dir := t.TempDir()
				cmd := exec.Command(path, append(shell[1:], "-s")...)
				cmd.Stdin = strings.NewReader(base + volumeWords() + "SET=" + set + " REPORT='' D=. W=.\n" + text)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%v: %s", err, out)
				}
				return strings.TrimSpace(string(out)), dir
			})
		})
	}
}

func TestWords(t *testing.T) {
	shells(t, func(t *testing.T, run func(string) (string, string)) {
		for text, want := range map[string]string{
			`json "$(printf 'a"b\\c\nd\te')"; printf '%s\n' "$J"`:                              `"a\"b\\c\nd e"`,
			`json "it's (é) $ * 100%"; printf '%s\n' "$J"`:                                     `"it's (é) $ * 100%"`,
			"part; text a b; raw n 1; printf 'a\\nb c\\n' >f; list l <f; send app":             `{"v":1,"app":{"a":"b","n":1,"l":["a","b c"]}}`,
			"snapshot_name 1 data vg; echo $NAME":                                              "cleave-" + set + "-data",
			"snapshot_name 2 " + strings.Repeat("x", 80) + " vg; echo $NAME":                   "cleave-" + set + "-2",
			"printf 'a\\nb\\n\\nc d\\ne\\n' >f; words f; echo $WORDS; words none; echo $WORDS": "b c d e",
			"echo x >f; has f x && echo yes; has f y || echo no; has none x || echo no":        "yes\nno\nno",
			"claim f && echo first; claim f || echo not again":                                 "first\nnot again",
			"CLOCK=170917919998; uptime() { UP=1; }; now; echo $NOW $EPOCH; now up; echo $NOW": "2024-02-29T03:59:59.99Z 1709179199\n2024-02-29T04:00:00.00Z",
			"CLOCK=0; uptime() { UP=5; }; now; echo $NOW":                                      "1970-01-01T00:00:00.05Z",
		} {
			if got, _ := run(text + "\n"); got != want {
				t.Errorf("%s: %s, want %s", text, got, want)
			}
		}
		out, _ := run("set_clock; now; echo $NOW\n")
		at, err := time.Parse(time.RFC3339Nano, out)
		if err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("now: %s, %v", out, err)
		}
		// A process of ours is known by its arguments, which NUL separates.
		out, _ = run(`echo 'sleep 60' >step; sh "$PWD/step" watch "$SET" 2>/dev/null & pid=$!
until our_process $pid watch || ! kill -s 0 $pid; do nap; done
our_process $pid watch && echo ours; our_process $pid run || echo 'not that'; our_process 1 watch || echo 'not it'
pkill -P $pid sleep
`)
		if out != "ours\nnot that\nnot it" {
			t.Errorf("our_process: %s", out)
		}
	})
}

// The lines are as `lvm lvs` prints them and the kernel lists mounts.
func TestFindVolumes(t *testing.T) {
	lines := []string{
		// 20 % of 100 extents; the part of a full group; no room at all; thin.
		"  u1|g|vg|a|409600|253|0|-wi-ao----|4096|100|/dev/mapper/vg-a|",
		"  u2|h|vh|a|409600|253|1|-wi-ao----|4096|9|/dev/mapper/vh-a|",
		"  u3|h|vh|b|409600|253|2|-wi-ao----|4096|9|/dev/mapper/vh-b|",
		"  u4|i|vi|a|4096|253|3|-wi-ao----|4096|1|/dev/mapper/vi-a|",
		"  u5|j|vj|a|4096|253|4|Vwi-aotz--|4096|0|/dev/mapper/vj-a|",
		// At rest; swap; a pool; a snapshot of ours; one that another device lies on.
		"  u6|g|vg|rest|4096|253|5|-wi-a-----|4096|100|/dev/mapper/vg-rest|",
		"  u7|g|vg|swap|4096|253|6|-wi-ao----|4096|100|/dev/mapper/vg-swap|",
		"  u8|j|vj|pool|4096|253|7|twi-aotz--|4096|100|/dev/mapper/vj-pool|",
		"  u9|g|vg|cleave-x|4096|253|8|swi-aos---|4096|100|/dev/mapper/vg-cleave--x|cleave.x",
		"  u10|k|vk|crypt|8192|253|9|-wi-ao----|4096|100|/dev/mapper/vk-crypt|",
	}
	mounts := []string{
		"1 0 253:0 / / rw,relatime - ext4 /dev/mapper/vg-a rw",
		"2 1 0:30 / /proc rw - proc proc rw",
		"3 1 8:1 / /boot rw,relatime shared:5 - ext4 /dev/sda1 rw",
		"4 1 8:1 /sub /again rw - ext4 /dev/sda1 rw",
		"5 1 8:2 / /ro ro - vfat /dev/sda2 ro",
		"6 1 8:3 / /ro2 ro - vfat /dev/sda3 rw",
		"7 1 7:0 / /snap rw - squashfs /dev/loop0 rw",
		"8 1 0:40 / /run rw - tmpfs tmpfs rw",
		"9 1 0:41 / /host rw - 9p hostroot rw",
		"10 1 0:42 /@ /srv rw - btrfs /dev/vdb rw",
		"11 1 253:10 / /secret rw - xfs /dev/mapper/secret rw",
		"12 1 0:43 / /fs rw - btrfs /dev/mapper/vj-a rw",
		"13 1 0:44 / /over rw - overlay overlay rw,lowerdir=/dev/x",
		"14 1 0:45 / /gvfs rw - fuse.portal portal rw",
	}
	want := []string{
		"20|u1|g|vg/a|409600|253:0|lvm-thick|4096|100|vg-a|ext4||/",
		"4|u2|h|vh/a|409600|253:1|lvm-thick|4096|9|vh-a|||",
		"4|u3|h|vh/b|409600|253:2|lvm-thick|4096|9|vh-b|||",
		"0|u4|i|vi/a|4096|253:3|lvm-thick|4096|1|vi-a|||",
		"0|u5|j|vj/a|4096|253:4|lvm-thin|4096|0|vj-a|btrfs||/fs",
		"0|u10|k|vk/crypt|8192|253:9|lvm-thick|4096|100|vk-crypt||dm-10 lies on it, and a file system there would not be frozen|",
	}
	others := []string{
		"sda1|partition|1048576|ext4|/boot",
		"vdb|disk|2097152|btrfs|/srv",
		"secret|disk|512|xfs|/secret",
	}
	shells(t, func(t *testing.T, run func(string) (string, string)) {
		for _, awk := range []string{"mawk", "gawk", "original-awk", "busybox awk"} {
			if _, err := exec.LookPath(strings.Fields(awk)[0]); err != nil {
				continue
			}
			_, dir := run("awk() { command " + awk + ` "$@"; }
SYSFS=sys MOUNTS=mounts SWAPS=swaps
mkdir -p sys/dev/block/8:1 sys/dev/block/253:10/dm sys/class/block/vdb sys/class/block/dm-9/holders/dm-10
echo 1 >sys/dev/block/8:1/partition; echo 2048 >sys/dev/block/8:1/size; printf 'MAJOR=8\nDEVNAME=sda1\n' >sys/dev/block/8:1/uevent
echo secret >sys/dev/block/253:10/dm/name; echo 1 >sys/dev/block/253:10/size; echo 4096 >sys/class/block/vdb/size
echo /dev/dm-6 partition >swaps
cat >lvs <<'E'
` + strings.Join(lines, "\n") + "\nE\ncat >mounts <<'E'\n" + strings.Join(mounts, "\n") + "\nE\nfind_volumes 20\n")
			for name, want := range map[string][]string{"volumes": want, "others": others} {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if d := cmp.Diff(want, strings.Split(strings.TrimSpace(string(got)), "\n")); err != nil || d != "" {
					t.Errorf("%s: %s: %v\n%s", awk, name, err, d)
				}
			}
		}
		// The room is shared among those that were asked for.
		out, _ := run("SYSFS=sys MOUNTS=/dev/null SWAPS=/dev/null\ncat >lvs <<'E'\n" + strings.Join(lines, "\n") + "\nE\nfind_volumes 20 u3 u5\ngrep '|u[23]|' volumes\n")
		if !strings.HasPrefix(out, "0|u2|") || !strings.Contains(out, "\n9|u3|") {
			t.Errorf("shared among those asked for: %s", out)
		}
	})
}
