// Command initiator is the measured side of the benchmarks of our iSCSI
// initiator: it does what `qemu-img bench` does, with the same arguments, on the
// LUN of a URL, and prints the same line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
)

// load is what is asked of the LUN.
type load struct {
	count, depth, size int
	step               int64 // bytes from one request to the next
	write              bool
}

func main() {
	var l load
	flag.IntVar(&l.count, "c", 75000, "requests")
	flag.IntVar(&l.depth, "d", 64, "requests at once")
	flag.IntVar(&l.size, "s", 4096, "bytes of one request")
	flag.Int64Var(&l.step, "S", 0, "bytes from one request to the next (default: -s)")
	flag.BoolVar(&l.write, "w", false, "write")
	name := flag.String("as", "", "name to log in under")
	secret := flag.String("chap-secret-file", "", "file with the secret of the URL's user")
	digest := flag.Bool("header-digest", false, "ask for a header digest")
	profile := flag.String("cpuprofile", "", "write a processor profile")
	flag.Parse()
	if err := run(flag.Arg(0), *name, *secret, *profile, *digest, l); err != nil {
		fmt.Fprintln(os.Stderr, "initiator:", err)
		os.Exit(1)
	}
}

func run(url, name, secretFile, profile string, digest bool, l load) (err error) {
	u, err := iscsi.ParseURL(url)
	if err != nil {
		return err
	}
	o := initiator.Options{Portals: []string{u.Portal}, Target: u.Target, LUN: u.LUN, Initiator: iscsi.Name(name), Depth: l.depth}
	if digest {
		o.HeaderDigest = initiator.DigestRequired
	}
	if secretFile != "" {
		secret, err := os.ReadFile(secretFile)
		if err != nil {
			return err
		}
		o.CHAP = &mask.Credentials{User: u.User, Secret: secret}
	}
	d, err := initiator.Open(context.Background(), o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	begun := time.Now()
	if err := l.run(d); err != nil {
		return err
	}
	_, err = fmt.Printf("Run completed in %.3f seconds.\n", time.Since(begun).Seconds())
	return err
}

// run has depth requests under way all the time. All have the same buffer, as
// those of qemu-img (bench_cb in its source) have: with one each, their data would
// pass through more of the processor's cache than the peer's, and the row would be
// about that.
func (l load) run(d *initiator.Disk) error {
	if l.step == 0 {
		l.step = int64(l.size)
	}
	span := d.Size() / int64(l.size) * int64(l.size)
	if span < int64(l.size) || l.step%int64(l.size) != 0 {
		return errors.New("the LUN is too small, or the step no multiple of the size")
	}
	q := d.NewQueue()
	do := q.Read
	if l.write {
		do = q.Write
	}
	buf := make([]byte, l.size)
	begun := 0
	begin := func(i int) {
		if begun < l.count {
			do(buf, int64(begun)*l.step%span, i)
			begun++
		}
	}
	for i := range l.depth {
		begin(i)
	}
	for {
		e, ok := q.Wait()
		if !ok {
			return nil
		}
		if e.Err != nil {
			return e.Err
		}
		begin(e.Tag)
	}
}
