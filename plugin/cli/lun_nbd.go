package cli

import (
	"context"
	"io"
	"net/netip"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) lunNBDCommand() *cobra.Command {
	var n nbdFlags
	c := &cobra.Command{
		Use:   "nbd SRC… [--volume V]… [--recovered]",
		Short: "Serve disks, volumes and snapshots to NBD clients of this host",
		Long: `Serve what is in SRC by NBD, until SIGINT or SIGTERM, for programs that read that: qemu-img, nbdcopy, nbdinfo, nbdkit, nbd-client.
Holes stay holes: clients are told where there is nothing.

Without --volume the whole disks are served, with it those volumes and snapshots, each as an export of its name; one alone
is the default export as well. --recovered serves the whole disks with the volumes put back to their snapshots: those that
--volume names, or of every volume that has exactly one.

All is read-only unless --writable is given: what is written to a recovered disk is kept in temporary files and is gone in
the end; else it goes to SRC itself, which takes --raw, and must not be in use.

It listens on a unix socket that only this user may use; --socket says where. The socket goes in the end; one of a server that has
died is replaced, and one that is served is refused. --listen serves by TCP instead, on a loopback address, or with TLS
on any: --tls-cert and --tls-key are the server's, --tls-client-ca says whose clients may come. Clients that do not ask for TLS are refused.`,
		Example: `  cleave lun nbd disk.img --volume vg/cleave-data
  cleave lun nbd a.img b.img --recovered --socket /run/restore.sock
  cleave lun nbd iscsi://192.0.2.10/iqn.2026-01.org.example:disk/0 --raw --listen 127.0.0.1:10809
  cleave lun nbd disk.qcow2 --listen 192.0.2.10:10809 --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			o, err := n.options(c.Context(), a, args)
			if err != nil {
				return err
			}
			return a.serveNBD(c.Context(), o)
		},
	}
	n.add(c.Flags())
	return c
}

// nbdFlags are those of `cleave lun nbd`.
type nbdFlags struct {
	from   sourceFlags
	listen string
	o      NBDOptions
}

func (n *nbdFlags) add(f *pflag.FlagSet) {
	n.from.add(f)
	o := &n.o
	f.StringArrayVar(&o.Volumes, "volume", nil, "name or UUID of a volume or snapshot; repeat it for several (default: the whole disks)")
	f.BoolVar(&o.Recovered, "recovered", false, "serve the whole disks, with volumes put back to their snapshots")
	f.BoolVar(&o.Writable, "writable", false, "let clients write: to a recovered disk, or with --raw to SRC itself")
	f.StringVar(&o.Overlay, "overlay", "", "directory for what is written to a recovered disk (default: the system's for temporary files)")
	f.StringVar(&o.Socket, "socket", "", "path of the unix socket (default: in a folder of its own)")
	f.StringVar(&n.listen, "listen", "", "ADDRESS:PORT to serve on instead of a unix socket; port 0 takes a free one")
	f.StringVar(&o.TLS.Certificate, "tls-cert", "", "file with the server's certificate, in PEM: clients must speak TLS")
	f.StringVar(&o.TLS.Key, "tls-key", "", "file with its key")
	f.StringVar(&o.TLS.ClientCA, "tls-client-ca", "", "file with the authorities whose certificates clients must show (default: they needn't show one)")
	f.BoolVar(&o.TLS.Optional, "tls-optional", false, "serve clients without TLS as well")
}

// options are what the flags say, if they go together.
func (n *nbdFlags) options(ctx context.Context, a *app, args []string) (o NBDOptions, err error) {
	o = n.o
	switch {
	case o.Writable && !o.Recovered && (!n.from.raw || len(o.Volumes) > 0):
		return o, usagef("--writable goes with --recovered, or for SRC itself with --raw and no --volume")
	case o.Overlay != "" && !(o.Recovered && o.Writable):
		return o, usagef("--overlay goes with --recovered --writable")
	case o.Socket != "" && n.listen != "":
		return o, usagef("--socket and --listen exclude each other")
	case (o.TLS.Certificate == "") != (o.TLS.Key == ""):
		return o, usagef("--tls-cert and --tls-key go together")
	case o.TLS.Certificate == "" && (o.TLS.ClientCA != "" || o.TLS.Optional):
		return o, usagef("--tls-client-ca and --tls-optional go with --tls-cert and --tls-key")
	}
	if n.listen != "" {
		if o.Listen, err = netip.ParseAddrPort(n.listen); err != nil {
			return o, usagef("--listen: %w", err)
		}
		if !o.Listen.Addr().IsLoopback() && (o.TLS.Certificate == "" || o.TLS.Optional) {
			return o, hint(usagef("--listen %s: others than this host would read and write in the clear", n.listen),
				"give --tls-cert and --tls-key without --tls-optional, or a loopback address")
		}
	}
	o.Sources, err = a.sources(ctx, &n.from, args)
	return o, err
}

// serveNBD serves until ctx ends, which is success: it is how one is told to stop.
func (a *app) serveNBD(ctx context.Context, o NBDOptions) error {
	log, err := a.logger()
	if err != nil {
		return err
	}
	return lunError(a.parts.ServeNBD(ctx, o, func(exports []NBDExport) error {
		if o.Listen.IsValid() && o.TLS.ClientCA == "" {
			say(a.Err, "note", o.note())
		}
		for i := range exports {
			e := &exports[i]
			e.URL = nbdURI(e.Name, e.Socket, e.Address, o.TLS.Certificate != "")
		}
		return a.print(nbdResult(exports))
	}, log))
}

// note says who may come where nobody has to prove anything.
func (o *NBDOptions) note() string {
	text := "any process of this host may read"
	if !o.Listen.Addr().IsLoopback() {
		text = "anybody who reaches " + o.Listen.Addr().String() + " may read"
	}
	if o.Writable {
		text += " and write"
	}
	return text + "; --tls-client-ca has clients prove themselves"
}

func nbdResult(exports []NBDExport) result {
	var names []string
	for _, e := range exports {
		names = append(names, e.URL)
	}
	return result{value: list("exports", exports), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"URL", "EXPORT", "SIZE", "ACCESS", "RECOVERED"}}
		for _, e := range exports {
			access := "read-only"
			if e.Writable {
				access = "writable"
			}
			t.add(e.URL, e.Name, size(e.Size), access, recoveredText(e.Recovered))
		}
		p.draw(w, t)
		return nil
	}}
}
