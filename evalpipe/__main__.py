from evalpipe.cli.app import main

main()
