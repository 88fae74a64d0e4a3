package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/cleave-san/cleave/iscsi"
)

// loginFlags say how to log in where SRC is a LUN: what its URL may not hold.
type loginFlags struct {
	initiator, secretFile        string
	mutualUser, mutualSecretFile string
}

func (l *loginFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.initiator, "src-initiator", "", "IQN to log in under where SRC is an iscsi:// URL (default: this host's, from /etc/iscsi/initiatorname.iscsi)")
	f.StringVar(&l.secretFile, "src-chap-secret-file", "", "file with the secret of the URL's user, of 12 to 256 bytes, readable by its owner only")
	f.StringVar(&l.mutualUser, "src-chap-mutual-user", "", "CHAP name by which SRC's target has to prove itself")
	f.StringVar(&l.mutualSecretFile, "src-chap-mutual-secret-file", "", "file with the target's secret")
}

// login checks that paths and flags fit together, and reads the secrets.
func (l *loginFlags) login(paths []string) (o LUNLogin, err error) {
	var remote, users int
	for _, p := range paths {
		if !strings.Contains(p, "://") {
			continue
		}
		if strings.HasPrefix(p, "nbd") {
			continue // it is read where it is opened
		}
		u, err := iscsi.ParseURL(p)
		if err != nil {
			return o, usagef("SRC: %w", err)
		}
		remote++
		if u.User != "" {
			users++
		}
	}
	switch {
	case remote == 0 && *l != loginFlags{}:
		return o, usagef("--src-initiator and --src-chap-… are for a SRC that is an iscsi:// URL")
	case users > 0 && l.secretFile == "":
		return o, usagef("--src-chap-secret-file is missing: the URL names a CHAP user")
	case users == 0 && l.secretFile != "":
		return o, usagef("--src-chap-secret-file needs a user in the URL, as in iscsi://USER@HOST/IQN/LUN")
	case (l.mutualUser == "") != (l.mutualSecretFile == ""), l.mutualUser != "" && l.secretFile == "":
		return o, usagef("--src-chap-mutual-user and --src-chap-mutual-secret-file go together, and with --src-chap-secret-file")
	}
	if l.initiator != "" {
		if o.Initiator, err = iscsi.ParseName(l.initiator); err != nil {
			return o, usagef("--src-initiator: %w", err)
		}
	}
	if _, o.Secret, err = readSecret("--src-chap-secret-file", l.secretFile, l.secretFile); err != nil {
		return o, err
	}
	o.MutualUser = l.mutualUser
	_, o.MutualSecret, err = readSecret("--src-chap-mutual-secret-file", l.mutualUser, l.mutualSecretFile)
	return o, err
}
