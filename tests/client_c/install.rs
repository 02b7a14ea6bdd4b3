//! An installation by `make install`, and C programs built with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::package::Package;
use crate::common::programs::{self, CLIENT};
use crate::common::workshop::root;
use crate::common::{Cluster, TIMEOUT};

#[test]
fn programs_link_with_the_installed_files_and_uninstall_leaves_no_file() {
    let package = Package::open();
    package.make("install");
    let expected = [
        "bin/kv",
        "bin/kv-bench",
        "bin/kv-coord",
        "bin/kv-server",
        "include/kvclient.h",
        "lib/cmake/kvclient/kvclientConfig.cmake",
        "lib/cmake/kvclient/kvclientConfigVersion.cmake",
        "lib/libkvclient.a",
        "lib/libkvclient.so",
        "lib/libkvclient.so.1",
        "lib/pkgconfig/kvclient-static.pc",
        "lib/pkgconfig/kvclient.pc",
        "share/man/man1/kv-bench.1",
        "share/man/man1/kv-coord.1",
        "share/man/man1/kv-server.1",
        "share/man/man1/kv.1",
        "share/man/man3/kvclient.3",
        "share/kvclient/tsan.supp",
    ];
    let functions = include_str!("../../ffi/abi/exports.txt").lines();
    let pages = functions.map(|function| format!("share/man/man3/{function}.3"));
    let expected = expected.map(ToOwned::to_owned).into_iter().chain(pages.clone());
    assert_eq!(package.files(), expected.collect());
    for page in pages {
        let text = fs::read_to_string(package.path(&page)).expect("read a page");
        assert_eq!(text, ".so man3/kvclient.3\n", "{page}");
    }

    // The installed coordinator starts the server executable of its own directory.
    let cluster = Cluster::builder().coordinator(package.path("bin/kv-coord")).start();
    let shared = package.compile("shared", &package.flags(&["kvclient"]));
    // If both libraries are in one directory, the linker takes the shared one. kvclient-static.pc,
    // or `-l:libkvclient.a` instead of `-lkvclient`, selects the static one.
    let whole = package.compile("whole", &package.flags(&["kvclient-static"]));
    let mut flags = package.flags(&["--static", "kvclient"]);
    let word = flags.iter_mut().find(|word| *word == "-lkvclient").expect("the library's name");
    *word = "-l:libkvclient.a".to_owned();
    let told = package.compile("told", &flags);
    for program in [&whole, &told] {
        let needed = programs::run("readelf", ["-d".as_ref(), program.as_os_str()], "", TIMEOUT);
        assert!(!needed.with_code(0).stdout.contains("kvclient"), "linked with the shared library");
    }
    for program in [shared, whole, told] {
        let ended = package.run(&program, &cluster.endpoint()).with_code(0);
        assert!(ended.stdout.starts_with("stored on 2 servers\n"), "{ended:?}");
    }
    let port = cluster.ready.clients_port.to_string();
    let kv = package.path("bin/kv").display().to_string();
    let ended = programs::run(&kv, ["-p", &port], "P \"k\" \"v\"\nV \"k\" \"v\"\n", TIMEOUT);
    assert!(ended.with_code(0).stdout.contains("check passed"));
    cluster.stop();

    // Installed files contain no debug information.
    for installed in ["bin/kv", "bin/kv-server", "lib/libkvclient.so.1", "lib/libkvclient.a"] {
        let file = package.path(installed);
        let sections = programs::run("readelf", ["-SW".as_ref(), file.as_os_str()], "", TIMEOUT);
        assert!(!sections.with_code(0).stdout.contains(".debug_info"), "{installed}");
    }

    // Uninstalling removes the files but not the directories, whose owner is not known.
    package.make("uninstall");
    assert_eq!(package.files(), BTreeSet::new());
}

#[test]
fn an_installation_over_another_does_not_disturb_running_programs() {
    let package = Package::open();
    package.make("install");
    let cluster = Cluster::builder().coordinator(package.path("bin/kv-coord")).start();
    package.make("install");
    assert_eq!(cluster.client("P \"k\" \"v\"\n").code, Some(0));
}

/// Installs as under sudo, with a PATH that does not contain cargo. Then either every file that `make` built in bin/ is
/// installed, or none.
#[test]
fn without_cargo_either_all_of_bin_is_installed_or_nothing() {
    let package = Package::open();
    let checkout = package.dir().join("checkout");
    let to = checkout.display().to_string();
    fs::create_dir(&checkout).expect("make a directory");
    for file in ["Makefile", "Cargo.toml", "scripts", "include", "docs", "ffi"] {
        let from = root().join(file).display().to_string();
        programs::run("cp", ["-r", &from, &to], "", TIMEOUT).with_code(0);
    }
    let built = package.dir().join("built").display().to_string();
    programs::run("cp", ["-r", &built, &format!("{to}/bin")], "", TIMEOUT).with_code(0);
    let destination = format!("DESTDIR={}", package.destination().display());
    let words = ["-i", "PATH=/usr/bin:/bin", "make", "-C", &to, "install", "PREFIX=/opt/kv"];
    let install = || programs::run("env", words.into_iter().chain([&*destination]), "", TIMEOUT);

    let library = checkout.join("bin/libkvclient.so");
    let put_away = checkout.join("libkvclient.so");
    fs::rename(&library, &put_away).expect("rename the library");
    let ended = install();
    assert!(ended.code != Some(0) && ended.stderr.contains("run \"make\" first"), "{ended:?}");
    assert!(ended.stderr.contains("there is no bin/libkvclient.so\n"), "{ended:?}");
    assert_eq!(package.files(), BTreeSet::new());

    fs::rename(&put_away, &library).expect("rename the library");
    install().with_code(0);
    assert!(package.path("bin/kv").exists() && package.path("lib/libkvclient.so.1").exists());
}

/// Uses a stand-in for ldconfig that lists one directory and leaves a file when asked to renew the
/// cache.
#[test]
fn install_registers_the_library_with_the_linker_or_prints_how_to_do_so() {
    let package = Package::open();
    let prefix = package.dir().join("prefix");
    let tools = package.dir().join("tools");
    let renewed = package.dir().join("renewed");
    fs::create_dir(&tools).expect("make a directory");
    let install = |known: &Path| {
        let script = format!(
            "#!/bin/sh\ncase $* in -NXv) echo '{}: (from somewhere)';; *) >'{}';; esac\n",
            known.display(),
            renewed.display()
        );
        let ldconfig = tools.join("ldconfig");
        fs::write(&ldconfig, script).expect("write a script");
        let ldconfig = ldconfig.display().to_string();
        programs::run("chmod", ["755", &ldconfig], "", TIMEOUT).with_code(0);
        let words = [
            format!("PATH={}:{}", tools.display(), std::env::var("PATH").expect("PATH")),
            "make".to_owned(),
            "-C".to_owned(),
            root().display().to_string(),
            "install".to_owned(),
            "DESTDIR=".to_owned(),
            format!("PREFIX={}", prefix.display()),
            format!("BUILT={}", package.dir().join("built").display()),
        ];
        programs::run("env", words, "", TIMEOUT).with_code(0).stdout
    };

    let said = install(Path::new("/nowhere"));
    assert!(said.contains(&format!("-Wl,-rpath,{}/lib\n", prefix.display())), "{said}");
    let for_pkg_config = format!("PKG_CONFIG_PATH={}/lib/pkgconfig\n", prefix.display());
    assert!(said.contains(&for_pkg_config), "{said}");
    assert!(!renewed.exists());

    let said = install(&prefix.join("lib"));
    assert!(!said.contains("rpath"), "{said}");
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!((renewed.exists(), said.contains("run as root: ldconfig")), (is_root, !is_root));
}

#[test]
fn install_honours_libdir_mandir_and_the_option_not_to_strip() {
    let package = Package::open();
    let words = ["LIBDIR=lib/machine", "MANDIR=man", "STRIP="];
    package.make_with("install", &words).with_code(0);
    let files = package.files();
    for file in ["lib/machine/libkvclient.so.1", "lib/machine/libkvclient.a", "man/man1/kv.1"] {
        assert!(files.contains(file), "{file} in {files:?}");
    }
    let pc = fs::read_to_string(package.path("lib/machine/pkgconfig/kvclient.pc"));
    assert!(pc.expect("read it").contains("\nlibdir=${prefix}/lib/machine\n"));
    let [installed, built] = [package.path("bin/kv"), PathBuf::from(CLIENT)].map(fs::read);
    assert!(installed.expect("read it") == built.expect("read it"), "install changed kv");
    package.make_with("uninstall", &words).with_code(0);
    assert_eq!(package.files(), BTreeSet::new());
}

#[test]
fn install_rejects_paths_that_compilers_cannot_use_with_the_reason() {
    let package = Package::open();
    for (word, said) in [
        ("PREFIX=opt/kv", "PREFIX must be an absolute path: opt/kv"),
        ("PREFIX=/opt/k v", "PREFIX must not contain blanks: /opt/k v"),
        ("LIBDIR=/usr/lib", "must be relative to PREFIX: /usr/lib"),
        ("MANDIR=a man", "must not contain blanks: a man"),
    ] {
        let ended = package.make_with("install", &[word]);
        assert!(ended.code != Some(0) && ended.stderr.contains(said), "{word}: {ended:?}");
        assert_eq!(package.files(), BTreeSet::new());
    }
}
